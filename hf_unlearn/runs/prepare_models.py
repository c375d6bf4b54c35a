# SPDX-License-Identifier: Apache-2.0
"""The models of a benchmark, made from a base model: which recipes train them, and where they are kept."""

import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from ..audit.checkpoints import checkpoint_of, tokenizer_of
from ..audit.qa import audit_model
from ..audit.sets import rows_digest
from ..cache import cache_root
from ..data.benchmarks import load_benchmark
from ..data.prepared import FOLDER, write_prepared
from ..files import one_at_a_time, read_json, write_json
from ..places import recipe_path
from ..stored.key import hash_json
from ..versions import versions
from .audit_cache import weights_of
from .parser import read_yaml
from .recipe import Recipe, parse_recipe


DONE = "prepared.json"
# Rows of a set on which it is tried what a model knows.
CHECKED = 100
TARGET, RETRAINED = "target", "retrained"
# What decides a model, of a recipe's fields; the rows and the base are told by their content.
IDLE = ("output_dir", "run_name", "benchmark_path", "model_name_or_path", "logging_steps", "report_to")


class Making:
    """Target and retrained models of one benchmark and base.

    Args:
        benchmark (`str`): its name.
        base (`str`, *optional*): folder or Hub id; by default the recipe's.
        name (`str`, *optional*): what recipes call it.
        recipe (`str`, *optional*): of method `retrain`.
        words (`list[str]`): further fields, as on the command line.

    Raises:
        `ValueError`: for a benchmark without a recipe, a recipe of another method, or fields that it does not have.
    """

    def __init__(self, benchmark: str, base: str | None, name: str | None, recipe: str | None, words: list[str]):
        self.benchmark, self.words = benchmark, list(words)
        self.recipe = recipe_path(recipe or f"recipes/{benchmark}/prepare.yaml")
        if not Path(self.recipe).is_file():
            raise ValueError(
                f"There is no {self.recipe}. Give `--recipe`: one of method `retrain`, that says how the models of "
                f"{benchmark!r} are trained."
            )
        content = read_yaml(self.recipe)
        if content.get("method") != "retrain":
            raise ValueError(f"{self.recipe}: method {content.get('method')!r}; models are made by `retrain`.")
        self.base = base or content["model_name_or_path"]
        self.name = name or re.sub(r"[^a-z0-9._-]+", "-", Path(self.base).name.lower())
        self.folders: dict[str, Path] = {}
        self._rows: list[str] | None = None

    def alone(self) -> AbstractContextManager[None]:
        """Two that make models of one name at once would write into the same folders."""
        return one_at_a_time(cache_root() / FOLDER / f"{self.benchmark}-{self.name}")

    def recipes(self, retrained: int = 1) -> dict[str, Recipe]:
        """The recipes of the target and of so many retrained models; the rows are read for them, no model is."""
        kinds = [TARGET, RETRAINED, *(f"{RETRAINED}-{i}" for i in range(1, retrained))]
        return {kind: self._recipe(kind) for kind in kinds}

    def named(self, kind: str) -> str:
        """What recipes call a model."""
        return f"{self.benchmark}/{self.name}/{kind}"

    def found(self, kind: str) -> dict[str, float | None] | None:
        """What a model knows that is made already."""
        file = self.folders[kind] / DONE
        if not file.is_file():
            return None
        self._write(kind)
        return read_json(file)["knows"]

    def finish(self, kind: str, recipe: Recipe) -> dict[str, float | None]:
        """Marks a model as made; what only training needs goes.

        Returns:
            `dict`: what it knows of the forget and the retain rows: probability and share of exact answers, both
            teacher-forced.
        """
        folder = self.folders[kind]
        knows = _known(folder, recipe)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        write_json(folder / DONE, {"base": self.base, "benchmark": self.benchmark, "kind": kind, "knows": knows})
        self._write(kind)
        return knows

    def _write(self, kind: str) -> None:
        write_prepared(self.benchmark, self.name, {kind: str(self.folders[kind])}, base=self.base)

    def _recipe(self, kind: str) -> Recipe:
        fields = ["--config", self.recipe, "--benchmark", self.benchmark, "--model_name_or_path", self.base]
        fields += ["--train_on", "all" if kind == TARGET else "retain", *self.words]
        first = parse_recipe(fields)
        seed = first.training.seed + int(kind.rpartition("-")[2] if "-" in kind else 0)
        folder = cache_root() / FOLDER / f"{self.benchmark}-{self._key(first, kind, seed)}"
        self.folders[kind] = folder
        own = ["--output_dir", str(folder), "--run_name", f"{self.name}-{kind}", "--seed", str(seed)]
        own += ["--resume_from_checkpoint", "last"] if _begun(folder) else []
        return parse_recipe([*fields, *own])

    def _key(self, recipe: Recipe, kind: str, seed: int) -> str:
        """Changes with the base's weights, the rows, the settings and the libraries."""
        if self._rows is None:
            bench = _benchmark(recipe)
            self._rows = [rows_digest(rows.to_list()) for rows in (bench.forget, bench.retain)]
        settings = {name: value for name, value in recipe.resolved().items() if name not in IDLE}
        about = [settings, kind == TARGET, seed, self._rows, weights_of(self.base) or self.base, versions()]
        return hash_json(about)[:16]


def _known(folder: Path, recipe: Recipe) -> dict[str, float | None]:
    run, training, bench = recipe.run, recipe.training, _benchmark(recipe)
    tokenizer = tokenizer_of(str(folder))
    model = checkpoint_of(str(folder), dtype=recipe.model.dtype or "auto").to(training.device)
    sets = {"forget": bench.forget, "retain": bench.retain}
    sets = {name: rows.select_columns(["question", "answer"]) for name, rows in sets.items()}
    how = {"max_items": CHECKED, "max_length": training.max_length, "batch_size": run.audit_batch_size}
    found = audit_model(model, tokenizer, sets, qa=recipe.qa, generate=False, **how)
    names = [f"{name}/{metric}" for name in sets for metric in ("probability", "exact_memorization")]
    return {name: found.metrics[name].value for name in names}


def _benchmark(recipe: Recipe):
    run = recipe.run
    return load_benchmark(run.benchmark, run.benchmark_path, run.forget_split, run.forget_targets)


def _begun(folder: Path) -> bool:
    return any((path / "trainer_state.json").is_file() for path in folder.glob("checkpoint-*"))
