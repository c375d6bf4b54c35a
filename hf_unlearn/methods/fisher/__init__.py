# SPDX-License-Identifier: Apache-2.0
"""Fisher forgetting."""

from .config import FisherConfig
from .trainer import FisherTrainer


__all__ = ["FisherConfig", "FisherTrainer"]
