# SPDX-License-Identifier: Apache-2.0
"""A run that is killed with SIGKILL. Arguments: model, folder, moment, rank that is killed.

Two checkpoints are due, at steps 2 and 4. Moments: `step` (within step 4), `save` (the second checkpoint is half
written), `evaluate` (at step 3), `end` (all steps are done), `never`.
"""

import os
import signal
import sys
import time
from pathlib import Path


# The library and the fixtures of this checkout, whatever is installed.
sys.path[:0] = [str(folder) for folder in (*Path(__file__).resolve().parents[1:3], Path(__file__).parent)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written_optimizer() -> None:
    """The second optimizer state that is saved ends in the middle of its file, and the process with it."""
    import torch

    save, count = torch.save, []

    def saved(value, file, *args, **kwargs):
        save(value, file, *args, **kwargs)
        if "optim" in str(file):
            count.append(file)
            if len(count) == 2:
                with open(file, "r+b") as written:
                    written.truncate(os.path.getsize(file) // 2)
                wait_for_weights(Path(file))
                die()

    torch.save = saved


def wait_for_weights(optimizer: Path) -> None:
    """Until the first process has written its part: the launcher ends it as soon as this one is dead."""
    checkpoint = next(folder for folder in optimizer.parents if folder.name.startswith("checkpoint-"))
    for _ in range(600):
        if (checkpoint / "model.safetensors").is_file():
            return
        time.sleep(0.1)


def make_trainer(model: str, folder: str, callbacks=()):
    from cases import FORGET, RETAIN, Stateful
    from conftest import make_args, make_tokenizer

    from hf_unlearn import NPOConfig

    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    size = {"per_device_train_batch_size": 4 // int(os.environ.get("WORLD_SIZE", "1"))}
    run = {"max_steps": 7, "retain_loss": "kl", "lr_scheduler_type": "linear"}
    return Stateful(
        model,
        make_args(NPOConfig, folder, **saves, **size, **run),
        forget_dataset=FORGET,
        retain_dataset=RETAIN,
        eval_dataset={"forget": FORGET, "retain": RETAIN},
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )


def main(model: str, folder: str, moment: str, rank: str) -> None:
    from transformers import TrainerCallback

    from hf_unlearn.training.checkpoints import last_whole

    own = os.environ.get("RANK", "0") == rank

    class Kill(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if own and moment == "step" and state.global_step == 3:
                die()

        def on_prediction_step(self, args, state, control, **kwargs):
            if own and moment == "evaluate":
                die()

        def on_train_end(self, args, state, control, **kwargs):
            if own and moment == "end":
                die()

    if own and moment == "save":
        half_written_optimizer()
    trainer = make_trainer(model, folder, [Kill()])
    trainer.train(resume_from_checkpoint=True if last_whole(folder) else None)
    trainer.save_model()
    trainer.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Processes that used ZeRO-3 may abort once the interpreter is gone (see `hf_unlearn.runs.launch.leave`).
    sys.stdout.flush()
    os._exit(0)
