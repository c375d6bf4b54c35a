# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn env`: versions and environment for a bug report. No names of models or data, no tokens."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..cache import cache_root
from ..runs.help import CommandParser
from ..versions import PACKAGES, versions


# They change what is installed or how a run goes, but never its result.
OTHERS = (
    "flash-attn", "hf-xet", "kernels", "liger-kernel", "lm_eval", "matplotlib", "rich", "rouge_score", "tensorboard",
    "trackio", "triton", "wandb",
)  # fmt: skip
# By name, for an environment holds secrets too.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "HF_DATASETS_OFFLINE", "HF_ENDPOINT",
    "HF_HOME", "HF_HUB_OFFLINE", "HF_UNLEARN_CACHE", "MASTER_ADDR", "NCCL_DEBUG", "NCCL_P2P_DISABLE",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM",
    "WORLD_SIZE",
)  # fmt: skip
# So does an accelerate config: addresses, roles, profiles.
LAUNCH_SETTINGS = (
    "compute_environment", "distributed_type", "num_machines", "num_processes", "mixed_precision", "use_cpu",
    "deepspeed_config", "fsdp_config",
)  # fmt: skip
GIB = 2**30


def main(argv: list[str]) -> None:
    CommandParser(prog="hf-unlearn env", description=__doc__).parse_args(argv)

    for name, value in environment():
        print(f"- {name}: {value}")


def environment() -> Iterator[tuple[str, str]]:
    """Name and value of everything that is known."""
    packages = (*PACKAGES, *OTHERS)
    found = versions(packages)
    yield from found.items()
    yield "not installed", ", ".join(name for name in packages if name not in found) or "none"
    yield "installed in", str(Path(__file__).resolve().parents[2])
    yield "python executable", sys.executable
    yield "platform", platform.platform()
    yield "processors", f"{os.cpu_count()} ({platform.machine()})"
    yield "memory", _memory()
    # A broken installation is when this command is needed most.
    for name, find in FINDERS.items():
        yield name, _told(find)
    yield "variables", ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "none"


def _told(find: Callable[[], str]) -> str:
    try:
        return find()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"unknown ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"


def _accelerators() -> str:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{d.name} ({d.total_memory / GIB:.0f} GiB, sm_{d.major}{d.minor})" for d in devices)
    if torch.accelerator.is_available():
        return f"{torch.accelerator.device_count()} x {torch.accelerator.current_accelerator().type}"
    return "none"


def _cuda() -> str:
    import torch

    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda is None:
        return "PyTorch was built without"
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "not looked at"
    return f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"


def _backends() -> str:
    from torch import distributed

    if not distributed.is_available():
        return "PyTorch was built without"
    known = ("gloo", "nccl", "mpi", "ucc", "xccl")
    return ", ".join(name for name in known if getattr(distributed, f"is_{name}_available", bool)()) or "none"


def _accelerate_config() -> str:
    """What `accelerate launch` reads where no file is named."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file)
    if not path.is_file():
        return f"none at {path}; `--accelerate_config` names one"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return f"{path}: " + ", ".join(f"{name}={content[name]}" for name in LAUNCH_SETTINGS if name in content)


def _cache() -> str:
    return _room(cache_root())


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return _room(Path(HF_HUB_CACHE))


def _room(folder: Path) -> str:
    """A folder that may not exist yet, and the free space where it would be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    made = "" if folder.exists() else ", not there yet"
    return f"{folder} ({shutil.disk_usage(there).free / GIB:.0f} GiB free{made})"


FINDERS: dict[str, Callable[[], str]] = {
    "accelerators": _accelerators,
    "CUDA": _cuda,
    "distributed backends": _backends,
    "accelerate config": _accelerate_config,
    "cache": _cache,
    "Hub cache": _hub_cache,
}
