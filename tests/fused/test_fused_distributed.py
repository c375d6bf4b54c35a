# SPDX-License-Identifier: Apache-2.0
"""Two processes train through the fused losses to the weights that one reaches on the plain path.

Each rank holds half of the batch; on one process the plain path takes the mean of the halves' losses. Run as a script,
this file is the worker.
"""

import copy
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
from processes import run
from test_fused_models import objective, plain_objective, reference_of, tiny

from hf_unlearn import fused
from hf_unlearn.fused import Head


STEPS = 2


def make_optimizer(model):
    # Not Adam: where a gradient is 0, as that of a key's bias, it would make steps of the noise around it.
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def half_batches(step):
    g = torch.Generator().manual_seed(10 + step)
    ids = torch.randint(3, 61, (8, 10), generator=g)
    labels = ids.clone()
    labels[:, :3] = labels[1, 7:] = -100
    if step == 1:
        labels[6:] = -100  # nothing to retain on the second rank
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids.split(4)]
    return list(zip(batches, labels.split(4), strict=True))


def plain_training(model):
    ref_model = copy.deepcopy(model)
    optimizer = make_optimizer(model)
    for step in range(STEPS):
        loss = 0
        for batch, labels in half_batches(step):
            with torch.no_grad():
                ref_logits = ref_model(**batch).logits
            loss = loss + plain_objective(model(**batch).logits, ref_logits, labels) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().double() for name, p in model.named_parameters()}


def distributed_model(tie):
    return tiny("Gemma2" if tie else "Phi", tie).float()


def fused_training(model, backward, step_and_zero):
    """What a trainer does: the reference's hidden states and a frozen copy of its head before the first step."""
    rank = int(os.environ["RANK"])
    batches = [half_batches(step)[rank] for step in range(STEPS)]
    fused.check_head(model, batches[0][0]["input_ids"])
    references = [reference_of(model, batch)[0].clone() for batch, _ in batches]
    with fused.gathered_head(fused.head_of(model)) as head:
        bias = None if head.bias is None else head.bias.detach().clone()
        frozen = Head(head.weight.detach().clone(), bias, head.scale, head.softcap)
    assert frozen.weight.shape == (61, 16)
    # In the first step the policy's own head, a shard or not, is the reference's still, and logits are kept; in the
    # second they are computed again in the backward, from the weight.
    for step, (ref_head, keep_bytes) in enumerate([(fused.head_of(model), 2**28), (frozen, 1)]):
        batch, labels = batches[step]
        compute = objective(labels, references[step], ref_head, keep_bytes)
        backward(fused.head_forward(model, batch, compute)["loss"])
        step_and_zero()


def ddp_worker(model, find_unused):
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
    optimizer = make_optimizer(model)
    fused_training(wrapped, lambda loss: loss.backward(), lambda: (optimizer.step(), optimizer.zero_grad()))
    return {name: p.detach() for name, p in model.named_parameters()}


def fsdp2_worker(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (2,))
    # As accelerate does it: the outermost module, too, lets go of its weights after the forward.
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    assert isinstance(model.lm_head.weight, DTensor)
    optimizer = make_optimizer(model)
    fused_training(model, lambda loss: loss.backward(), lambda: (optimizer.step(), optimizer.zero_grad()))
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def zero_worker(model, stage):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # 1 is the default
        # Small parameters are kept whole by default, and all of these are small.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    optimizer = make_optimizer(model)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if stage == 3:
        assert model.lm_head.weight.numel() == 0
    fused_training(engine, engine.backward, engine.step)
    if stage < 3:
        return {name: p.detach() for name, p in model.named_parameters()}
    assert model.lm_head.weight.numel() == 0
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def worker(kind, folder):
    torch.set_num_threads(1)
    if kind.startswith("zero"):
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    else:
        torch.distributed.init_process_group("gloo")
    assert torch.distributed.get_world_size() == 2
    for tie in (False, True):
        model = distributed_model(tie)
        if kind.startswith("zero"):
            weights = zero_worker(model, int(kind[4:]))
        else:
            weights = fsdp2_worker(model) if kind == "fsdp2" else ddp_worker(model, kind == "ddp_unused")
        torch.save(weights, Path(folder) / f"{tie}{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "ddp_unused", "zero2", "zero3", "fsdp2"])
def test_two_processes_train_to_the_weights_of_one(kind, tmp_path):
    status, said = run(Path(__file__), kind, str(tmp_path), processes=2)
    assert status == 0, said[-9000:]
    for tie, rank in itertools.product((False, True), "01"):
        weights = torch.load(tmp_path / f"{tie}{rank}.pt")
        start = {name: p.detach() for name, p in distributed_model(tie).named_parameters()}
        plain = plain_training(distributed_model(tie).double())
        assert weights.keys() == plain.keys()
        for name, weight in weights.items():
            assert (weight - start[name]).abs().max() > 2e-4 or "k_proj.bias" in name, name
            assert (weight.double() - plain[name]).abs().max() < 1e-5, name


if __name__ == "__main__":
    worker(*sys.argv[1:])
    # Now and then a process that used ZeRO-3 on a CPU aborts once the interpreter is gone ("terminate called without
    # an active exception"), on the plain path, too. All that is tested has been saved by now.
    os._exit(0)
