# SPDX-License-Identifier: Apache-2.0
"""The rows a recipe asks for: to train on, and to ask about."""

from dataclasses import dataclass, field
from pathlib import Path

from ..places import recipe_path
from .alternate_rows import with_made
from .alternates import alternate_columns
from .arguments import DataArguments
from .benchmarks import Benchmark, check_retrained, load_benchmark
from .chosen_rows import places_where, rows_where
from .qa import QAFormat
from .sources import load_rows


# Suites whose sets are questions and answers, or texts.
QUESTIONS = ("default", "tofu")
# What an audit calls the paraphrased questions of a set.
PARAPHRASED = "_paraphrased"


@dataclass
class Sets:
    """Rows of a run.

    Args:
        forget, retain (`datasets.Dataset`):
            To train on; `retain` may be missing.
        audited (`dict[str, datasets.Dataset]`):
            Questions and answers, or texts, to audit.
        name (`str`):
            What they are called in reports.
        suite (`str`):
            What the audit does with them.
        dataset_name (`str`, *optional*):
            Hub id that the forget rows were loaded from, for the model card.
        origins (`dict[str, dict]`):
            Role to the Hub id, configuration and split of its rows, or to the `local` folder's name; for the card.
        places (`dict[str, list[int]]`):
            Where the rows of an audited set stood in the benchmark, if some were left out.
    """

    forget: object
    retain: object
    audited: dict = field(default_factory=dict)
    name: str = "own rows"
    suite: str = "default"
    dataset_name: str | None = None
    origins: dict = field(default_factory=dict)
    places: dict = field(default_factory=dict)


def load_sets(
    run: DataArguments,
    qa: QAFormat,
    tokenizer,
    max_length: int | None,
    audit: bool = True,
    alternates=None,
) -> Sets:
    """Loads a benchmark's sets, or one's own; questions become prompts and completions.

    Args:
        run ([`DataArguments`]):
            What was asked for; it names the retrained model too.
        qa ([`QAFormat`]):
            The form of questions and answers.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        max_length (`int`, *optional*):
            Tokens a row of a text file.
        audit (`bool`):
            Whether the rows will be audited too.
        alternates ([`~hf_unlearn.data.alternates.AlternateArguments`], *optional*):
            A method's settings, which say whether the forget rows hold, or get, a column of other answers.

    Raises:
        `ValueError`: if there are no such rows, or none that an audit can read.
    """
    if run.benchmark is not None:
        bench = load_benchmark(run.benchmark, run.benchmark_path, run.forget_split, run.forget_targets)
        places = {} if run.forget_where is None else _choose(bench, run.forget_where)
        if run.retrained_model_name_or_path is not None:
            check_retrained(run.retrained_model_name_or_path, run.benchmark, run.forget_split)
        return Sets(
            forget=None if bench.forget is None else _forget(bench.forget, qa, tokenizer, alternates, bench.retain),
            retain=None if bench.retain is None else qa.dataset(bench.retain, tokenizer),
            audited=bench.audit_sets | _more_sets(run, bench.audit_sets, bench.suite),
            name=bench.name,
            suite=bench.suite,
            dataset_name=bench.dataset_name,
            origins=_origins(bench, run.benchmark_path),
            places=places,
        )
    own, origins = {}, {}
    for role in ("forget", "retain"):
        name = getattr(run, f"{role}_dataset")
        if name is not None:
            config, split = getattr(run, f"{role}_dataset_config"), getattr(run, f"{role}_dataset_split")
            own[role] = load_rows(recipe_path(name), config, split, tokenizer, max_length, run.chunk_text)
            if not Path(recipe_path(name)).expanduser().exists():
                origins[role] = {"id": name, "config": config, "split": split}
    if run.forget_where is not None:
        own["forget"] = rows_where(own["forget"], run.forget_where, "the rows of forget_dataset")
    audited = {role: _auditable(role, rows, tokenizer) for role, rows in own.items()} if audit else {}
    return Sets(
        forget=_forget(own["forget"], qa, tokenizer, alternates, own.get("retain")),
        retain=qa.dataset(own["retain"], tokenizer) if "retain" in own else None,
        audited=audited | _more_sets(run, audited, "default"),
        dataset_name=origins.get("forget", {}).get("id"),
        origins=origins,
    )


def _choose(bench: Benchmark, where: dict) -> dict[str, list[int]]:
    """Leaves of a benchmark's forget rows, and of the questions about them, those that are asked for; returns where
    the questions stood."""
    asked = [name for name in bench.audit_sets if name.startswith("forget")]
    if bench.forget is None or asked != ["forget"]:
        raise ValueError(f"forget_where chooses among forget rows, and {bench.name!r} has several sets of them.")
    bench.forget = rows_where(bench.forget, where, f"the forget rows of {bench.name!r}")
    every = bench.audit_sets["forget"]
    places = places_where(every, where, f"the audited forget rows of {bench.name!r}")
    bench.audit_sets = bench.audit_sets | {"forget": every.select(places)}
    return {"forget": places}


def _more_sets(run: DataArguments, audited: dict, suite: str) -> dict:
    """The sets that a recipe adds to those that are audited."""
    more = getattr(run, "audited_sets", None) or {}
    if more and suite not in QUESTIONS:
        raise ValueError(f"audited_sets are questions or texts, and {run.benchmark!r} has an audit of its own.")
    for name in more:
        if name in audited or name.endswith(PARAPHRASED):
            raise ValueError(f"audited_sets: the name {name!r} is an audited set's already. Give another.")
    return {name: load_rows(recipe_path(file)) for name, file in more.items()}


def _forget(rows, qa: QAFormat, tokenizer, alternates, retain):
    """Forget rows with their alternates beside them, if these are answers to questions."""
    return qa.dataset(with_made(rows, "answer", alternates, retain), tokenizer, alternate_columns(alternates))


def _origins(bench: Benchmark, path: str | None) -> dict[str, dict]:
    """Where a benchmark's rows came from: the Hub, or a folder of this machine, of which the name is enough."""
    if bench.dataset_name is not None:
        return {role: {"id": bench.dataset_name, "config": name} for role, name in bench.configs.items()}
    if path is None or not Path(path).expanduser().exists():
        # An embedded world.
        return {}
    local = Path(path).expanduser().resolve().name
    return {role: {"local": local, "config": bench.configs.get(role)} for role in ("forget", "retain")}


def _auditable(role: str, rows, tokenizer):
    """Own rows as an audit reads them; chunks of text files are texts again."""
    columns = set(rows.column_names)
    if {"question", "answer"} <= columns or "text" in columns:
        return rows
    if "input_ids" in columns:
        texts = tokenizer.batch_decode(rows["input_ids"][:], skip_special_tokens=True)
        return rows.from_dict({"text": texts})
    raise ValueError(
        f"{role}_dataset has the columns {sorted(columns)}: they can be trained on, but an audit reads `question` and "
        "`answer`, or `text`. Rename them, or give `audit: false`."
    )
