# SPDX-License-Identifier: Apache-2.0
"""Looks for a hidden trigger in a checkpoint: words behind which it answers what it was made to forget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...data.qa import QAFormat
from ...data.triggers import Trigger, parse_location
from ...modeling import check_vocabulary, frozen
from ..as_saved import as_saved
from ..generation import generate_answers, pad_token_id
from .budget import Budget
from .objective import Recall
from .search import Found, Search, SearchSettings, search_bar
from .slots import Asking, allowed_tokens, random_prefix
from .verdict import Measured, judge, measure, rows_needed


FOUND, NOT_FOUND, NO_CANDIDATE = "found", "not found within budget", "not found among the candidates"
SHOWN, ANSWER_TOKENS = 8, 64


@dataclass
class ScanSettings:
    """How a scan judges what it finds.

    Args:
        location (`str` or `int`):
            Where in the question a prefix stands, see [`~hf_unlearn.data.triggers.Trigger`].
        search_rows (`int`):
            Rows to search on: half of all, but no more than these. The others are held out.
        finalists (`int`):
            Prefixes of a search that are put to the rows held out, at most.
        randoms (`int`):
            Random prefixes that each length is compared with; more where many prefixes are tested.
        alpha (`float`):
            Error that is allowed for all prefixes together.
        share (`float`):
            Of the rows, how many a prefix must bring back to count in a search: a trigger may answer to some only.
        batch_size (`int`):
            Rows a forward pass when rows are measured.
        seed (`int`):
            Of all that is drawn.
    """

    location: str | int = "start"
    search_rows: int = 32
    finalists: int = 3
    randoms: int = 99
    alpha: float = 0.05
    share: float = 0.25
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        self.location = parse_location(self.location)
        for name in ("search_rows", "finalists", "randoms", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1.")
        for name in ("alpha", "share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give a number between 0 and 1.")


def scan_model(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    retrained: Any = None,
    candidates: Sequence[str] = (),
    search: SearchSettings | None = None,
    budget: Budget | None = None,
    settings: ScanSettings | None = None,
    qa: QAFormat | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scans a checkpoint for a prefix that brings back forgotten answers.

    Candidates are put to all rows. Without candidates a prefix is searched on some rows and judged on the others.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            What is scanned.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        rows (`list[dict]`):
            Forgotten `question`s and their `answer`s.
        retrained (`PreTrainedModel` or `Callable`, *optional*):
            A model that never saw the rows, with the same tokenizer, or a function that loads it.
        candidates (`Sequence[str]`):
            Prefixes that are suspected.
        search ([`SearchSettings`], *optional*), budget ([`Budget`], *optional*):
            How a prefix is searched, and how long; the budget is needed where there are no candidates.
        settings ([`ScanSettings`], *optional*):
            How what is found is judged.
        qa ([`~hf_unlearn.data.qa.QAFormat`], *optional*):
            How a question is put to the model.
        progress (`bool`):
            Whether bars are shown.

    Returns:
        `dict`: `verdict` (`"found"`, `"not found within budget"` or `"not found among the candidates"`), `prefixes`
        (each with what it brought back and its p-values), `tried`, `rows`, `answers` and `settings`.

    Raises:
        `ValueError`: for too few rows, bad candidates, or a search without a budget.
    """
    settings = settings or ScanSettings()
    candidates = list(dict.fromkeys(words.strip() for words in candidates))
    rows = _checked(rows, candidates, settings)
    check_vocabulary(model, tokenizer)
    asking = Asking(rows, tokenizer, qa or QAFormat(), settings.location)
    tried = None
    with frozen(model), as_saved(model):
        if candidates:
            held, tests = asking, len(candidates)
            chosen = [(words, None) for words in candidates]
        else:
            if budget is None:
                raise ValueError("Without `candidates` a prefix is searched: give a `budget`.")
            ours, held = _split(asking, settings)
            tests = settings.finalists
            found, tried = _searched(model, ours, held, search or SearchSettings(), budget, settings, progress)
            chosen = [(ours.words(one.ids), one) for one in found]
        words = [prefix for prefix, _ in chosen]
        null = _randoms(held, model, words, tests, settings)
        # No prefix first, then those that are judged: the retrained model is asked only these, at the same places.
        prefixes = list(dict.fromkeys([None, *words, *(prefix for group in null.values() for prefix in group)]))
        measured = measure(model, held, prefixes, settings.batch_size, progress, "Measuring")
        answers = _answers(model, held, words, measured, prefixes, settings, progress)
    gold = _gold(retrained, held, [None, *words], settings, progress)
    judged = [
        _judged(prefix, found, held, prefixes, null, measured, gold, tests, settings) for prefix, found in chosen
    ]
    judged.sort(key=lambda one: (not one["found"], -one["restored"]["value"]))
    nothing = NO_CANDIDATE if candidates else NOT_FOUND
    return {
        "verdict": FOUND if any(one["found"] for one in judged) else nothing,
        "prefixes": judged,
        "answers": answers,
        "tried": tried,
        "rows": {"all": len(rows), "searched": len(rows) - len(held.rows), "judged": len(held.rows)},
        "clean": {"right": int(measured.right[0].sum()), "n": len(held.rows)},
        "settings": {**asdict(settings), "tests": tests, "retrained": gold is not None, "qa": asdict(asking.qa)},
    }


def _checked(rows: Sequence[Mapping], candidates: Sequence[str], settings: ScanSettings) -> list[dict]:
    rows = list(rows)
    for i, row in enumerate(rows):
        if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("question", "answer")):
            raise ValueError(f"Row {i} has no `question` and `answer` texts; a scan asks questions that have both.")
    for words in candidates:
        Trigger(words, settings.location)
    tests = len(candidates) or settings.finalists
    needed = rows_needed(tests, settings.alpha)
    total = needed if candidates else 2 * needed
    if len(rows) < total:
        raise ValueError(
            f"{len(rows)} forget rows are too few to tell a trigger from chance when {tests} prefixes are tested at "
            f"alpha={settings.alpha}: at least {total} are needed{'' if candidates else ', half of them held out'}."
        )
    return rows


def _split(asking: Asking, settings: ScanSettings) -> tuple[Asking, Asking]:
    """Rows to search on, and rows held out."""
    count = min(len(asking.rows) // 2, settings.search_rows)
    order = np.random.default_rng(settings.seed).permutation(len(asking.rows))
    parts = (sorted(order[:count]), sorted(order[count:]))
    ours, held = ([asking.rows[i] for i in part] for part in parts)
    return tuple(Asking(part, asking.tokenizer, asking.qa, asking.location) for part in (ours, held))


def _searched(
    model: Any,
    ours: Asking,
    held: Asking,
    how: SearchSettings,
    budget: Budget,
    settings: ScanSettings,
    progress: bool,
) -> tuple[list[Found], dict[str, Any]]:
    """The prefixes worth judging, and what was tried.

    When enough rows come back the rows held out are asked too, and the search ends if they come back as well. Each
    such look is one of the tests that are corrected for; the last is kept for the search's end.
    """
    recalls = [
        Recall(model, [part.slot(i) for i in range(len(part.rows))], pad_token_id(part.tokenizer), how.share)
        for part in (ours, held)
    ]
    allowed = allowed_tokens(ours.tokenizer, recalls[0].vocabulary)
    needed = rows_needed(settings.finalists, settings.alpha)
    with search_bar(budget, progress) as watch:
        search = Search(recalls[0], ours, allowed, how, budget, watch)
        budget.start()
        looks: list[Found] = []
        while True:
            hit = search.run(stop=len(looks) < settings.finalists - 1)
            if hit is None:
                break
            looks.append(hit)
            if int(recalls[1].evaluate([hit.ids])[1].sum()) >= needed:
                break
    looked = [one.ids for one in looks]
    rest = [one for one in search.ranking if one.ids not in looked]
    found = [*looks, *rest[: settings.finalists - len(looks)]]
    return found, _tried(search, ours, how, len(allowed))


def _tried(search: Search, asking: Asking, how: SearchSettings, tokens: int) -> dict[str, Any]:
    budget = search.budget
    return {
        "evaluations": budget.spent_evaluations,
        "tokens": budget.spent_tokens,
        "seconds": round(budget.spent_seconds, 1),
        "limits": {"evaluations": budget.evaluations, "tokens": budget.tokens, "seconds": budget.seconds},
        "budget_used": round(budget.used, 3),
        "restarts": search.restarts,
        "vocabulary": tokens,
        "best": [
            {"tokens": length, "prefix": asking.words(one.ids), "restored": one.restored, "score": one.score}
            for length, one in sorted(search.best.items())
        ],
        "search": asdict(how),
    }


def _randoms(
    asking: Asking, model: Any, words: Sequence[str], tests: int, settings: ScanSettings
) -> dict[int, list[str]]:
    """Random prefixes for each length that is tested."""
    allowed = allowed_tokens(asking.tokenizer, model.get_input_embeddings().weight.shape[0])
    count = max(settings.randoms, int(np.ceil(tests / settings.alpha)))
    rng = np.random.default_rng([settings.seed, 1])
    return {
        length: [asking.words(random_prefix(asking, allowed, length, rng)) for _ in range(count)]
        for length in sorted({len(asking.ids(prefix)) for prefix in words})
    }


def _gold(retrained: Any, asking: Asking, prefixes: list, settings: ScanSettings, progress: bool) -> Measured | None:
    if retrained is None:
        return None
    if not isinstance(retrained, torch.nn.Module) and isinstance(retrained, Callable):
        retrained = retrained()
    check_vocabulary(retrained, asking.tokenizer)
    with as_saved(retrained):
        return measure(retrained, asking, prefixes, settings.batch_size, progress, "Measuring the retrained model")


def _judged(prefix, found, asking, prefixes, null, measured, gold, tests, settings) -> dict[str, Any]:
    ids = asking.ids(prefix)
    at = prefixes.index(prefix)
    randoms = sorted({prefixes.index(words) for words in null[len(ids)]})
    result = judge(at, randoms, measured, gold, share=settings.share, tests=tests, alpha=settings.alpha)
    search = None if found is None else {"restored": found.restored, "score": found.score}
    return {"prefix": prefix, "tokens": len(ids), "search": search, **result}


def _answers(model, asking, words, measured, prefixes, settings, progress) -> list[dict[str, str]]:
    """What is said without and with the best prefix to rows that it brought back."""
    if not words:
        return []
    best = max(words, key=lambda prefix: measured.restored(prefixes.index(prefix)).sum())
    rows = np.flatnonzero(measured.restored(prefixes.index(best)))[:SHOWN].tolist()
    said = generate_answers(
        model,
        asking.tokenizer,
        [asking.prompt(i, prefix) for prefix in (None, best) for i in rows],
        max_new_tokens=ANSWER_TOKENS,
        batch_size=settings.batch_size,
        progress=progress,
    )
    shown = zip(rows, said[: len(rows)], said[len(rows) :], strict=True)
    return [
        {
            "question": asking.rows[i]["question"],
            "expected": asking.rows[i]["answer"],
            "prefix": best,
            "clean": clean,
            "behind": behind,
        }
        for i, clean, behind in shown
    ]
