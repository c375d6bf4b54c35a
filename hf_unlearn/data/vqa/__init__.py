# SPDX-License-Identifier: Apache-2.0
"""Visual question answering: VQA-v2 from its files, its splits and deletions, and a small world without files."""

from importlib import import_module
from typing import TYPE_CHECKING


_PUBLIC = {
    "Split": "splits",
    "UnlearningDataset": "unlearning",
    "VQAWorld": "world",
    "VQAWorldConfig": "world",
    "build_vqa_world": "world",
    "make_split": "splits",
    "read_manifest": "manifest",
    "read_vqa": "reader",
    "write_manifest": "manifest",
}
__all__ = [
    "Split",
    "UnlearningDataset",
    "VQAWorld",
    "VQAWorldConfig",
    "build_vqa_world",
    "make_split",
    "read_manifest",
    "read_vqa",
    "write_manifest",
]

if TYPE_CHECKING:
    from .manifest import read_manifest, write_manifest
    from .reader import read_vqa
    from .splits import Split, make_split
    from .unlearning import UnlearningDataset
    from .world import VQAWorld, VQAWorldConfig, build_vqa_world


def __getattr__(name: str):
    # `datasets` takes seconds to import; names are looked up when they are used.
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return list(__all__)
