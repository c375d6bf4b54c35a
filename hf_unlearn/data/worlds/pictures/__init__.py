# SPDX-License-Identifier: Apache-2.0
"""The embedded world of pictures: drawn shapes, questions about them, and owners whom no picture shows."""

from .config import VQAWorldConfig
from .world import VQAWorld, build_vqa_world


__all__ = ["VQAWorld", "VQAWorldConfig", "build_vqa_world"]
