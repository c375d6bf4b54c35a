# SPDX-License-Identifier: Apache-2.0
"""One process of a run; `torchrun` starts several. Argument: a JSON file of settings. Writes what it saw beside it."""

import json
import os
import sys
from pathlib import Path


# The library and the fixtures of this checkout, whatever is installed.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]


# Rows of one length: token means then do not depend on how rows are spread over processes.
FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(12)]


def run(settings: dict, folder: Path) -> dict:
    """Trains as `settings` say; returns, on every process, what a test wants to know.

    Args:
        settings (`dict`): `method`, `model` (a path), `adapter` (`"none"`, `"fresh"` or `"trained"`), `resume` (a path
            or nothing) and `args`.
        folder (`Path`): gets the checkpoint and, from every process, `seen-<rank>.json`.
    """
    import torch
    from conftest import make_args
    from transformers import AutoTokenizer

    from hf_unlearn import METHODS

    config_class, trainer_class = METHODS[settings["method"]]
    # The arguments come before the model: ZeRO-3 shards a model while it is loaded, and must be known by then.
    args = make_args(config_class, folder, **settings["args"])
    model, peft_config = model_and_adapter(settings["model"], settings["adapter"])
    seen = []

    class Watched(trainer_class):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if "index" in inputs:
                seen.append(inputs["index"].tolist())
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Watched(
        model=model,
        args=args,
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        eval_dataset={"forget": FORGET, "retain": RETAIN},
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        peft_config=peft_config,
    )
    trainer.train(resume_from_checkpoint=settings.get("resume"))
    metrics = trainer.evaluate()
    trainer.save_model()
    result = {
        "metrics": metrics,
        "world": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "kind": str(trainer.accelerator.distributed_type),
        "wrapper": type(trainer.model_wrapped).__name__,
        "reference": trainer.reference.name,
        "reference_wrapper": type(getattr(trainer.reference, "model", None)).__name__,
        "log": trainer.state.log_history,
        "flops": trainer.state.total_flos,
        "seen": seen,
    }
    rank = int(os.environ["RANK"])
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    # Without it a rank may be torn down while a thread of its process group still runs, and abort.
    trainer.end()
    return result


def model_and_adapter(path: str, kind: str):
    """The model as a path or, with an adapter that came in trained, loaded; and what to add to it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    if kind != "trained":
        return path, config if kind == "fresh" else None
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model, None


def main() -> None:
    path = Path(sys.argv[1])
    result = run(json.loads(path.read_text()), path.parent)
    if int(os.environ["RANK"]) == 0:
        (path.parent / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
    # Processes that used ZeRO-3 may abort once the interpreter is gone (see `hf_unlearn.runs.launch.leave`).
    sys.stdout.flush()
    os._exit(0)
