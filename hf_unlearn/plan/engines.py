# SPDX-License-Identifier: Apache-2.0
"""How training is spread over GPUs, read from an accelerate config."""

from dataclasses import dataclass
from pathlib import Path

from ..yaml_file import load_yaml


@dataclass(frozen=True)
class Engine:
    """One way to spread training.

    Args:
        name (`str`): `single`, `ddp`, `zero1`, `zero2`, `zero3` or `fsdp2`.
        gpus (`int`): processes, one GPU each.
        offload_optimizer, offload_weights (`bool`): optimizer states, and weights, in host memory.
    """

    name: str = "single"
    gpus: int = 1
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def zero(self) -> int:
        """ZeRO stage, 0 without DeepSpeed."""
        return int(self.name[4:]) if self.name.startswith("zero") else 0

    def share(self, *sharding: str) -> float:
        """What one GPU holds of something that the named engines shard."""
        return 1 / self.gpus if self.name in sharding else 1.0


def read_engine(path: Path | None, gpus: int | None) -> Engine:
    """The engine of an accelerate config, or of plain processes without one.

    Args:
        path (`Path`, *optional*): the YAML file.
        gpus (`int`, *optional*): overrides its `num_processes`.

    Raises:
        `ValueError`: for a number below 1, or an engine that is not known here.
    """
    config = {} if path is None else load_yaml(path, f"No accelerate config at {str(path)!r}.")
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold `field: value` lines, as `accelerate config` writes them.")
    gpus = config.get("num_processes", 1) if gpus is None else gpus
    if gpus < 1:
        raise ValueError(f"gpus={gpus}; give at least 1.")
    kind = str(config.get("distributed_type", "MULTI_GPU")).upper()
    if kind == "DEEPSPEED":
        deepspeed = config.get("deepspeed_config", {})
        if "zero_stage" not in deepspeed:
            raise ValueError(f"{path} names no `zero_stage`. DeepSpeed JSON files are not read: put the stage there.")
        stage = int(deepspeed["zero_stage"])
        offloads = {name: _offloads(deepspeed, name) for name in ("optimizer", "param")}
        if stage == 0:
            return Engine("ddp" if gpus > 1 else "single", gpus)
        return Engine(f"zero{stage}", gpus, offloads["optimizer"], offloads["param"])
    if kind == "FSDP":
        offload = bool(config.get("fsdp_config", {}).get("fsdp_offload_params"))
        return Engine("fsdp2", gpus, offload, offload)
    if kind in ("NO", "MULTI_GPU"):
        return Engine("ddp" if gpus > 1 else "single", gpus)
    raise ValueError(f"{path}: distributed_type {kind} is not known; allowed: NO, MULTI_GPU, DEEPSPEED, FSDP.")


def _offloads(deepspeed: dict, name: str) -> bool:
    return str(deepspeed.get(f"offload_{name}_device", "none")).lower() != "none"
