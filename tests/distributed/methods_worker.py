# SPDX-License-Identifier: Apache-2.0
"""One process of a job that trains with many methods one after the other. Arguments: folders of the models and of the
results, a DeepSpeed config or nothing, and names of runs."""

import gc
import json
import os
import sys
import traceback
from pathlib import Path


# The library and the fixtures of this checkout, whatever is installed.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

# Add-ons that read gradients or weights over all processes: method, settings, and whether an adapter trains.
ADD_ONS = {
    "npo + grad_ortho": ("npo", {"grad_ortho": "project", "gradient_accumulation_steps": 2}, False),
    "simnpo + wagle + sam": ("simnpo", {"mask_by": "wagle", "sam_rho": 0.05}, False),
    "npo + lat": (
        "npo",
        {"lat_epsilon": 0.5, "lat_layers": [0], "lat_steps": 3, "gradient_accumulation_steps": 2},
        False,
    ),
    "ihl + fila": ("ihl", {"lora_init": "fila"}, True),
}


def run(name: str, models: Path, folder: Path, engine: dict | None) -> dict:
    """Three steps of four pairs; saves the model, and returns what a test wants to know."""
    from conftest import lora, make_args, make_tokenizer
    from test_methods import CASES, FORGET, RETAIN, halved

    from hf_unlearn import METHODS

    method, added, adapter = ADD_ONS.get(name, (name, {}, False))
    case, world = CASES[method], int(os.environ.get("WORLD_SIZE", "1"))
    # Plain descent: of gradients that are rounding alone, Adam would make steps.
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "retain_loss": case.retain_losses[-1]}
    settings |= {"retain_loss": "nll"} if name in ADD_ONS else {}
    settings |= case.settings | added | ({} if engine is None else {"deepspeed": engine})
    settings["per_device_train_batch_size"] = 4 // world // settings.get("gradient_accumulation_steps", 1)
    config_class, trainer_class = METHODS[method]
    # The arguments come before the model: ZeRO-3 shards a model while it is loaded, and must be known by then.
    args = make_args(config_class, folder, **settings)
    # `num_alternates` of them for each forget row, one after the other.
    count = settings.get("num_alternates", 1)
    alternates = [{**halved(row), "completion": " No" + "." * i} for row in FORGET for i in range(count)]
    forget, retain = FORGET, RETAIN
    if "alternate" in case.roles or case.prompts:
        forget = [halved(row) for row in FORGET]
    if case.prompts:
        retain = [halved(row) for row in RETAIN]
    paired, others = "alternate" in case.roles, sorted((models / method).glob("*"))
    trainer = trainer_class(
        model=str(models / ("knowing" if case.knows else "plain")),
        args=args,
        forget_dataset=forget,
        retain_dataset=None if args.retain_loss == "none" else retain,
        alternate_dataset=alternates if paired else None,
        ref_models={path.name: str(path) for path in others} or None,
        processing_class=make_tokenizer(),
        peft_config=lora(target_modules="all-linear") if adapter else None,
    )
    trainer.train()
    trainer.save_model()
    accelerator = trainer.accelerator
    return {
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "world": accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "stage": engine and trainer.model_wrapped.zero_optimization_stage(),
    }


def main(models: str, folder: str, engine: str, *names: str) -> None:
    from accelerate.state import AcceleratorState

    for name in names:
        AcceleratorState._reset_state()
        try:
            result = run(name, Path(models), Path(folder) / name, json.loads(engine))
        except Exception:  # noqa: BLE001 (the other methods run all the same)
            result = {"failed": traceback.format_exc()}
        (Path(folder) / f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    gc.freeze()
    main(*sys.argv[1:])
    # Processes that used ZeRO-3 may abort once the interpreter is gone (see `hf_unlearn.runs.launch.leave`).
    sys.stdout.flush()
    os._exit(0)
