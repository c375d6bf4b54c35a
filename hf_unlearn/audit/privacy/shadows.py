# SPDX-License-Identifier: Apache-2.0
"""Shadow models: the caller trains them, each on its own part of the rows; what they think of all rows is kept."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...files import read_json, write_json
from .cache import digest, load_arrays, save_arrays
from .choose_subject import as_subject
from .subjects import Subject


logger = logging.getLogger(__name__)

OUT, IN, UNLEARNED = 0, 1, 2
STATISTICS = ("log_odds", "logp")
PLAN = "shadows.json"


@dataclass(frozen=True)
class Shadows:
    """What `S` shadow models think of `n` rows.

    Args:
        ids (`list[str]`):
            The rows' [`~Subject.row_keys`].
        states (`np.ndarray` `[S, n]`):
            What each model did with each row: `OUT` 0 (never saw it), `IN` 1 (trained on it), `UNLEARNED` 2.
        statistics (`dict[str, np.ndarray]`):
            `log_odds` and `logp`, each the mean over a row's predictions, `[S, n]`.
        about (`dict`):
            How they were trained, as far as it is known: seed, background and note of [`train_shadows`].
    """

    ids: list[str]
    states: np.ndarray
    statistics: dict[str, np.ndarray]
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.states)

    def plan(self) -> dict[str, Any]:
        """Which models they are, as JSON: their number, rows, and what each did with which row. Numbers that they
        found are left out, since other machines round them otherwise."""
        states = hashlib.sha256(np.ascontiguousarray(self.states).tobytes()).hexdigest()
        return {"n_shadows": len(self), "rows": digest(self.ids)[:16], "states": states[:16], **self.about}

    def values(self, statistic: str) -> np.ndarray:
        """One statistic, `[S, n]`."""
        if statistic not in self.statistics:
            raise ValueError(f"statistic={statistic!r}; allowed: {', '.join(self.statistics)}.")
        return self.statistics[statistic]

    def columns_of(self, ids: Sequence[str]) -> np.ndarray:
        """Columns of rows, by their [`~Subject.row_keys`].

        Raises:
            `ValueError`: if the shadow models were not trained with and without a row.
        """
        place = {row: i for i, row in enumerate(self.ids)}
        missing = [i for i, row in enumerate(ids) if row not in place]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(ids)} rows, first row {missing[0]}, were not among the shadow models' rows: "
                "nothing is known of models with and without them. Train shadow models on members and non-members, "
                "encoded alike."
            )
        return np.array([place[row] for row in ids])


def shadow_states(n_shadows: int, n_rows: int, seed: int = 0, unlearning: bool = False) -> np.ndarray:
    """What each of `S` models does with each of `n` rows; each row is `IN` for exactly half of them.

    With `unlearning`, each row is `IN` for a third, `OUT` for a third and `UNLEARNED` for a third.

    Returns:
        `np.ndarray` `[S, n]`: decided by `seed` alone.

    Raises:
        `ValueError`: if `n_shadows` is too small, or not divisible by 2 (3).
    """
    kinds = (OUT, IN, UNLEARNED) if unlearning else (OUT, IN)
    if n_shadows % len(kinds) or n_shadows < 2 * len(kinds):
        raise ValueError(
            f"n_shadows={n_shadows}; give a multiple of {len(kinds)}, at least {2 * len(kinds)}: every row is "
            f"{'in, out and unlearned' if unlearning else 'in and out'} equally often, each at least twice."
        )
    column = np.repeat(np.array(kinds, dtype=np.int8), n_shadows // len(kinds))
    return np.random.default_rng(seed).permuted(np.repeat(column[:, None], n_rows, axis=1), axis=0)


def train_shadows(
    train: Callable[[list, int], Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    folder: str | Path,
    n_shadows: int = 16,
    background: Sequence[Mapping[str, Any]] = (),
    unlearn: Callable[[Any, list, list, int], Any] | None = None,
    seed: int = 0,
    note: str = "",
    progress: bool = True,
    **subject_kwargs: Any,
) -> Shadows:
    """Trains shadow models and keeps what they think of every row. A killed training goes on where it was.

    Args:
        train (`Callable[[list, int], model]`):
            Trains a model on rows with a seed: as the attacked model was trained.
        rows (`Sequence[dict]`):
            Members and non-members together. Each model trains on a seeded half of them.
        folder (`str` or `Path`):
            Holds the plan and one small file a model that is done; models are not kept.
        n_shadows (`int`):
            Even. 16 find what is blatant; false positive rates of 1e-3 ask for 64 and more.
        background (`Sequence[dict]`):
            Rows that every model trains on, such as the retain set.
        unlearn (`Callable[[model, list, list, int], model]`, *optional*):
            For U-LiRA: makes a model forget the first rows and keep the second, with a seed; the audited method with
            its settings. `n_shadows` is then a multiple of 3.
        seed (`int`):
            Decides who is in and out, and the seeds handed on.
        note (`str`):
            Names what `train` and `unlearn` do. A folder of another note is refused.
        progress (`bool`):
            A bar of models.
        subject_kwargs:
            For [`as_subject`]: `processing_class`, `max_length`, ...

    Returns:
        [`Shadows`].

    Raises:
        `ValueError`: if the folder holds shadow models of other rows, another seed, number or note.
    """
    from tqdm.auto import tqdm

    folder = Path(folder).expanduser()
    rows, background = list(rows), list(background)
    states = shadow_states(n_shadows, len(rows), seed, unlearn is not None)
    _check_twins(rows, background)
    plan = {
        "n_shadows": n_shadows,
        "seed": seed,
        "unlearning": unlearn is not None,
        "rows": digest(_hash_rows(rows)),
        "background": digest(_hash_rows(background)),
        "note": note,
    }
    _check_plan(folder, plan)
    # One bar, of models.
    common = {**subject_kwargs, "progress": False}
    for s in tqdm(range(n_shadows), desc="Shadow models", unit="model", disable=not progress):
        path = folder / f"shadow-{s:04d}.npz"
        if path.is_file() and load_arrays(path) is not None:
            continue
        subject = as_subject(_trained(train, unlearn, rows, background, states[s], s, seed), **common)
        save_arrays(path, {"ids": np.array(subject.row_keys(rows)), **_statistics(subject, rows)})
    about = {name: plan[name] for name in ("seed", "background", "note")}
    return replace(load_shadows(folder, states, n_shadows), about=about)


def load_shadows(folder: Path, states: np.ndarray, n_shadows: int) -> Shadows:
    """The shadow models of a folder in which all are done."""
    found: dict[str, list] = {name: [] for name in STATISTICS}
    ids: list[str] | None = None
    for s in range(n_shadows):
        arrays = load_arrays(folder / f"shadow-{s:04d}.npz")
        if arrays is None:
            raise ValueError(f"{folder} lacks shadow model {s}, or it is damaged: train shadow models there again.")
        mine = arrays["ids"].tolist()
        if ids not in (None, mine):
            raise ValueError(f"{folder}: shadow models {s - 1} and {s} saw rows encoded differently. Remove it.")
        ids = mine
        for name in STATISTICS:
            found[name].append(arrays[name])
    return Shadows(ids or [], states, {name: np.stack(values) for name, values in found.items()})


def shadow_seed(seed: int, shadow: int) -> int:
    """The seed of one shadow model's training, below 2**31."""
    return int(np.random.SeedSequence([seed, shadow]).generate_state(1)[0] >> 1)


def _trained(train, unlearn, rows, background, states, s, seed):
    own = shadow_seed(seed, s)
    chosen = {
        state: [row for row, is_in in zip(rows, states == state, strict=True) if is_in] for state in (IN, UNLEARNED)
    }
    model = train(chosen[IN] + chosen[UNLEARNED] + background, own)
    if unlearn is not None:
        model = unlearn(model, chosen[UNLEARNED], chosen[IN] + background, own)
    if model is None:
        raise ValueError("`train` (or `unlearn`) returned None. It must return the model.")
    return model


def _statistics(subject: Subject, rows: list) -> dict[str, np.ndarray]:
    signals = subject.observe(rows)
    return {name: signals.mean(name) for name in STATISTICS}


def _hash_rows(rows: list) -> list[str]:
    import datasets

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
            value = datasets.Image().decode_example(dict(value))
        if hasattr(value, "tobytes") and not hasattr(value, "tolist"):
            # A picture.
            return hashlib.sha256(value.tobytes()).hexdigest()
        return value.tolist() if hasattr(value, "tolist") else value

    return [digest({name: plain(value) for name, value in row.items()}) for row in rows]


def _check_twins(rows: list, background: list) -> None:
    """Refuses a row that would be out and, through its twin, in."""
    seen = set(_hash_rows(background))
    for i, row in enumerate(_hash_rows(rows)):
        if row in seen:
            raise ValueError(
                f"Row {i} of the shadow models' rows stands there twice, or in `background` too, so no model would be "
                f"without it. Leave the twin out. The row: {str(rows[i])[:200]}"
            )
        seen.add(row)


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    held = _held_plan(path)
    if held is not None:
        differs = sorted(name for name in plan if held.get(name) != plan[name])
        if differs:
            raise ValueError(
                f"{folder} holds shadow models that differ in {', '.join(differs)}. Give another folder, or remove it."
            )
        return
    write_json(path, plan, indent=1)


def _held_plan(path: Path) -> dict[str, Any] | None:
    """The plan that a folder holds; `None` where it holds none, or one that an older version was killed while writing,
    which comes before the first shadow model.

    Raises:
        `ValueError`: if it is damaged and there are shadow models, of which nobody knows then what they saw.
    """
    if not path.is_file():
        return None
    try:
        held = read_json(path)
    except ValueError as error:
        if any(path.parent.glob("shadow-*.npz")):
            raise ValueError(f"{error} Nothing tells what its shadow models saw: remove {path.parent}.") from None
        logger.warning("%s is damaged, and no shadow model is there yet: it is written anew.", path)
        return None
    return held if isinstance(held, dict) else {}
