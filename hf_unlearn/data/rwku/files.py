# SPDX-License-Identifier: Apache-2.0
"""Where RWKU's rows are: the Hub, a folder of the Hub's files, or a folder with one folder a target."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..sources import load_rows


HUB = "jinzhuoran/RWKU"


class Subset(NamedTuple):
    """A subset's configuration and split on the Hub, and its file."""

    config: str
    split: str
    file: str


TARGETS = Subset("forget_target", "train", "intro.json")
PROBES = {
    "forget_fb": Subset("forget_level1", "test", "forget_level1.json"),
    "forget_qa": Subset("forget_level2", "test", "forget_level2.json"),
    "forget_aa": Subset("forget_level3", "test", "forget_level3.json"),
    "neighbor_fb": Subset("neighbor_level1", "test", "neighbor_level1.json"),
    "neighbor_qa": Subset("neighbor_level2", "test", "neighbor_level2.json"),
}
MEMBERS = {
    "forget_members": Subset("mia_forget", "test", "forget_mia.json"),
    "retain_members": Subset("mia_retain", "test", "retain_mia.json"),
}
FLUENCY = {"fluency": Subset("utility_fluency", "test", "fluency.json")}
# What there is to train on: what the target itself (Llama-3-8B-Instruct, Phi-3-mini) writes of a person, or Wikipedia.
CORPORA = {
    "train_positive_llama3": Subset("train_positive_llama3", "train", "positive.json"),
    "train_positive_phi3": Subset("train_positive_phi3", "train", "positive_phi.json"),
    "train_original_passage": Subset("train_original_passage", "train", "passage.json"),
}
ONE_TARGET = re.compile(r"\d+_.+")


@dataclass(frozen=True)
class RwkuFiles:
    """RWKU's rows by subset and target.

    Args:
        path (`Path`, *optional*):
            A folder of the Hub's files (`forget_level1.json`, ...; also the one above, with `All`), or of one folder a
            target (`1_Stephen_King`, ...; also the one above, with `Target`). By default the Hub.

    Raises:
        `ValueError`: if the folder is neither.
    """

    path: Path | None = None

    def __post_init__(self):
        if self.path is not None and not self.folder.is_dir():
            raise ValueError(f"No folder at benchmark_path={str(self.path)!r}. Give the folder of RWKU's JSON files.")
        if self.path is not None and not self.by_target and not (self.folder / TARGETS.file).is_file():
            raise ValueError(
                f"{self.folder} holds neither {TARGETS.file} (the Hub's files) nor folders such as 1_Stephen_King. "
                "Put RWKU's files there, or leave `benchmark_path` out for the Hub."
            )

    @cached_property
    def folder(self) -> Path:
        """The folder in which the files or the targets' folders are."""
        path = self.path.expanduser()
        return next((path / name for name in ("All", "Target") if (path / name).is_dir()), path)

    @cached_property
    def by_target(self) -> dict[str, Path]:
        """Target ids to their folders, in the order of their numbers; empty in the other layouts."""
        if self.path is None:
            return {}
        found = [entry for entry in self.folder.iterdir() if entry.is_dir() and ONE_TARGET.fullmatch(entry.name)]
        return {entry.name: entry for entry in sorted(found, key=lambda entry: int(entry.name.split("_")[0]))}

    @cached_property
    def targets(self) -> dict[str, str]:
        """Ids, `1_Stephen_King`, to names, `Stephen King`, in RWKU's order."""
        if self.by_target:
            return {id: _name_in(folder) for id, folder in self.by_target.items()}
        names = dict.fromkeys(self._column(self._load(TARGETS), TARGETS, "target"))
        return {target_id(number, name): name for number, name in enumerate(names, start=1)}

    def rows(self, subset: Subset, names: Collection[str], optional: bool = False):
        """A subset's rows about some of the targets.

        Args:
            subset ([`Subset`]): which.
            names (`Collection[str]`): the targets' names.
            optional (`bool`): whether a file that is missing, or has nothing of them, is no error.

        Returns:
            `datasets.Dataset`, or `None` where an optional subset has no such rows.

        Raises:
            `ValueError`: if there are none.
        """
        if self.by_target:
            return self._rows_by_target(subset, names, optional)
        if optional and self.path is not None and not (self.folder / subset.file).is_file():
            return None
        rows = self._load(subset)
        kept = [i for i, subject in enumerate(self._column(rows, subset, "subject")) if subject in names]
        if kept:
            return rows.select(kept)
        return self._nothing(subset, names, optional)

    def _rows_by_target(self, subset: Subset, names: Collection[str], optional: bool):
        from datasets import concatenate_datasets

        files = [self.by_target[id] / subset.file for id, name in self.targets.items() if name in names]
        found = [file for file in files if file.is_file()]
        if len(found) < len(files) and not optional:
            missing = next(file for file in files if not file.is_file())
            raise ValueError(f"{missing} is missing. Put RWKU's files there, or leave `benchmark_path` out.")
        # Files of two characters are empty lists, which is nothing to make a table of.
        found = [file for file in found if file.stat().st_size > 2]
        if found:
            return concatenate_datasets([load_rows(str(file)) for file in found])
        return self._nothing(subset, names, optional)

    def _load(self, subset: Subset):
        if self.path is None:
            return load_rows(HUB, subset.config, subset.split)
        file = self.folder / subset.file
        if not file.is_file():
            raise ValueError(f"{file} is missing. Put RWKU's files there, or leave `benchmark_path` out for the Hub.")
        return load_rows(str(file))

    def _nothing(self, subset: Subset, names: Collection[str], optional: bool) -> None:
        if not optional:
            raise ValueError(f"{self._where(subset)} has no rows about {', '.join(map(repr, names))}.")

    def _where(self, subset: Subset) -> str:
        return f"{HUB} ({subset.config})" if self.path is None else str(self.folder / subset.file)

    def _column(self, rows, subset: Subset, name: str) -> list:
        if name not in rows.column_names:
            raise ValueError(f"{self._where(subset)} has the columns {rows.column_names}, and no {name!r}.")
        return rows[name][:]


def target_id(number: int, name: str) -> str:
    """RWKU's id of a target: `1_Stephen_King`."""
    return f"{number}_{name.replace(' ', '_')}"


def _name_in(folder: Path) -> str:
    """A target's name; its folder's lacks it where the name has an underscore or was cleaned for a file system."""
    intro = folder / TARGETS.file
    rows = load_rows(str(intro)) if intro.is_file() else None
    if rows is not None and "target" in rows.column_names:
        return rows["target"][0]
    return folder.name.split("_", 1)[1].replace("_", " ")
