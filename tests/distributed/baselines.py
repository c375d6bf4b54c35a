# SPDX-License-Identifier: Apache-2.0
"""One process of several runs of the baselines; `torchrun` starts several. Argument: the folder of results."""

import json
import os
import sys
from pathlib import Path


sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

# Rows of one length: token means then do not depend on how rows are spread over processes.
FORGET = [{"prompt": f"Who {i:02d}?", "completion": f" Ada {i:02d}"} for i in range(8)]
RETAIN = [{"prompt": f"Was {i:02d}?", "completion": f" Bob {i:02d}"} for i in range(12)]
HOLDOUT = [{"prompt": f"Who {i:02d}?", "completion": f" Cyd {i:02d}"} for i in range(6)]
SETTINGS = {
    "scrub": {"num_train_epochs": 3, "msteps": 2, "rewind": True, "scrub_warmup": "param_noise"},
    "fisher": {"fisher": "empirical", "scales": [1e-9, 1e-8], "validation_rows": 4},
    "amnesiac": {"variant": "relabel", "num_train_epochs": 2},
    "retrain": {"num_train_epochs": 2},
}


def main(folder: Path) -> None:
    import torch
    from conftest import make_args, make_model, make_tokenizer

    from hf_unlearn import METHODS, AmnesiacRecorder

    world = int(os.environ.get("WORLD_SIZE", "1"))
    for method, settings in SETTINGS.items():
        config_class, trainer_class = METHODS[method]
        batch = {"per_device_train_batch_size": 4 // world, "max_steps": -1, "max_grad_norm": 0.0}
        args = make_args(config_class, folder / method, **batch, learning_rate=2e-3, **settings)
        recorder = [AmnesiacRecorder(folder / "record", RETAIN[:2])] if method == "retrain" else None
        trainer = trainer_class(
            model=make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            eval_dataset={"holdout": HOLDOUT},
            processing_class=make_tokenizer(),
            callbacks=recorder,
        )
        trainer.train()
        trainer.save_model()
        if args.process_index == 0:
            seen = {"log": trainer.state.log_history, "steps": trainer.state.global_step}
            (folder / f"{method}.json").write_text(json.dumps(seen))
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "world.json").write_text(json.dumps([world, type(trainer.model_wrapped).__name__]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
