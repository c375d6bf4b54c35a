# SPDX-License-Identifier: Apache-2.0
"""One process of a job that takes a loss of the rows of all: writes the loss and the gradient, averaged over the
processes as engines do. Arguments: a file of rows, how many each process has, and the folder of the results."""

import json
import sys
from pathlib import Path


# The library of this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(rows: str, counts: str, folder: str) -> None:
    import torch
    from accelerate import Accelerator

    from hf_unlearn.losses import noise_loss
    from hf_unlearn.processes import of_all_processes

    accelerator, counts = Accelerator(cpu=True), json.loads(counts)
    states, noise = torch.load(rows)
    scale = torch.ones(states.shape[1], dtype=states.dtype, requires_grad=True)
    own = states.split(counts)[accelerator.process_index] * scale
    loss = noise_loss(of_all_processes(own, accelerator), noise)
    loss.backward()
    gradient = accelerator.reduce(scale.grad, reduction="mean")
    torch.save((loss.detach(), gradient), Path(folder) / f"{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
