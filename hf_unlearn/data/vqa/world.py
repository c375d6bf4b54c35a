# SPDX-License-Identifier: Apache-2.0
"""Another name of [`hf_unlearn.data.worlds.pictures`], kept for code that knows it."""

from ..worlds.pictures import VQAWorld, VQAWorldConfig, build_vqa_world


__all__ = ["VQAWorld", "VQAWorldConfig", "build_vqa_world"]
