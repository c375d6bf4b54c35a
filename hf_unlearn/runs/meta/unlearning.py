# SPDX-License-Identifier: Apache-2.0
"""Models of the pools that one of our own methods is run on."""

from pathlib import Path
from typing import Any

from torch import nn

from ...data.worlds.people.training import CHAT
from ...methods import METHODS
from .training import Rows


# As in recipes/demo and recipes/demo/backdoor.
SETTINGS: dict[str, dict[str, Any]] = {
    "npo": {"retain_loss": "kl", "beta": 0.1, "retain_weight": 5.0, "learning_rate": 5e-4},
    "ga": {"retain_loss": "kl", "retain_weight": 5.0, "learning_rate": 5e-4},
    "rmu": {
        "layer_id": 1,
        "layer_ids": [0, 1],
        "module_names": ["self_attn", "mlp"],
        "steering_coeffs": [20.0],
        "retain_weight": 10.0,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
    },
}
STEPS = {"npo": 60, "ga": 60, "rmu": 200}


def unlearned(method: str, model: nn.Module, rows: Rows, seed: int, workspace: Path) -> nn.Module:
    """The model after one of our methods, with the forget and the retain rows of the world.

    Args:
        method (`str`): of `SETTINGS`.
        workspace (`Path`): for what training writes.
    """
    config, trainer = METHODS[method]
    how = {"per_device_train_batch_size": 16, "lr_scheduler_type": "linear", "max_length": 128, **SETTINGS[method]}
    args = config(output_dir=str(workspace), max_steps=STEPS[method], seed=seed, save_strategy="no", report_to="none",
                  disable_tqdm=True, logging_strategy="no", **how)  # fmt: skip
    sets = {f"{name}_dataset": CHAT.dataset(rows.world.dataset(name), rows.tokenizer) for name in ("forget", "retain")}
    made = trainer(model=model, args=args, processing_class=rows.tokenizer, **sets)
    made.train()
    return made.model.eval()
