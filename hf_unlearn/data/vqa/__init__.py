# SPDX-License-Identifier: Apache-2.0
"""Visual question answering: VQA-v2 from its files, its splits and deletions, and a small world without files."""

from typing import TYPE_CHECKING

from ...lazy import lazy


if TYPE_CHECKING:
    from .manifest import read_manifest, write_manifest
    from .reader import read_vqa
    from .splits import Split, make_split
    from .unlearning import UnlearningDataset

# Worlds stand above this package.
_WORLD = dict.fromkeys(("VQAWorld", "VQAWorldConfig", "build_vqa_world"), "hf_unlearn.data.worlds.pictures")
__all__, __getattr__, __dir__ = lazy(__name__, _WORLD)
