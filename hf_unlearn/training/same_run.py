# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint is of the run that wants to go on from it: what decides which rows come next, as it was trained
with and not as it was asked for."""

from typing import Any

from accelerate.utils import broadcast_object_list

from ..models.adapters import is_peft_model
from ..processes import shards_weights
from ..stored.key import hash_table


def run_facts(trainer) -> dict[str, Any]:
    """What a checkpoint says of the run that makes it.

    Args:
        trainer ([`ResumableTrainer`]): in training; its batch size may be smaller than the arguments' by now
            (`auto_find_batch_size`).
    """
    args, pairs = trainer.args, trainer.train_dataset
    batch = trainer._train_batch_size
    return {
        "method": trainer.method,
        "pairs_a_step": batch * args.gradient_accumulation_steps * args.world_size,
        "batch": batch,
        "accumulation": args.gradient_accumulation_steps,
        "processes": args.world_size,
        "drop_last": args.dataloader_drop_last,
        "pairs": len(pairs),
        "seed": pairs.seed,
        "rows": rows_of(trainer),
        "entered": trainer.entered,
        "ref_models": trainer.references.weights,
        "has_optimizer": not args.save_only_model,
        "seconds": trainer.stopwatch.seconds,
    }


def check_same_run(folder: str, facts: dict[str, Any], trainer) -> None:
    """Raises `ValueError` unless the run would go on with the rows that come next in the run that made `folder`.

    Args:
        folder (`str`): a whole checkpoint.
        facts (`dict`): what it says; one that an earlier version made says less.
        trainer ([`ResumableTrainer`]): of the run that goes on.
    """
    args = trainer.args
    if facts["method"] != trainer.method:
        raise ValueError(
            f"{folder} was made by method {facts['method']!r}, and this run's is {trainer.method!r}: it cannot go on "
            f"there. Start anew, from {folder} as the model if that is meant."
        )
    # Trainer takes the checkpoint's batch size where it looks for one itself.
    batch = facts.get("batch") if args.auto_find_batch_size else None
    batch = batch or args.per_device_train_batch_size
    made, now = facts["pairs_a_step"], batch * args.gradient_accumulation_steps * args.world_size
    if made != now:
        raise ValueError(
            f"{folder} was made with {made} pairs a step, and this run has {now}: it would skip or repeat rows. Give "
            f"per_device_train_batch_size (now {batch}) and gradient_accumulation_steps (now "
            f"{args.gradient_accumulation_steps}) so that their product, times {args.world_size} processes, is {made}."
        )
    # A step's rows are the product's, but what the end of an epoch drops is not.
    drops = args.dataloader_drop_last or facts.get("drop_last")
    now = {
        "processes": (args.world_size, shards_weights(args), "num_processes"),
        "drop_last": (args.dataloader_drop_last, True, "dataloader_drop_last"),
        "batch": (batch, drops, "per_device_train_batch_size"),
        "accumulation": (args.gradient_accumulation_steps, drops, "gradient_accumulation_steps"),
        "seed": (trainer.train_dataset.seed, True, "seed (or data_seed)"),
        "pairs": (len(trainer.train_dataset), True, "rows of epoch_by's role"),
    }
    for name, (value, matters, told) in now.items():
        if matters and facts.get(name, value) != value:
            raise ValueError(
                f"{folder} was made with {told} = {facts[name]}, and this run has {value}: it would go on with other "
                "rows. Give what it was made with, or start anew."
            )
    rows = rows_of(trainer)
    other = [role for role, known in rows.items() if facts.get("rows", rows).get(role) != known]
    if other:
        raise ValueError(
            f"{folder} was made with other {' and '.join(other)} rows than this run has (or in another order, or "
            "encoded otherwise). Give the rows, the tokenizer and the max_length that it was made with, or start "
            "anew."
        )
    named = trainer.references.weights
    (named,) = broadcast_object_list([named])
    if other := [name for name, known in facts.get("ref_models", named).items() if named.get(name) != known]:
        raise ValueError(
            f"{folder} was made by a run that compared rows with another {other[0]!r} model. Pass the one that it was "
            "made with in `ref_models`, or start anew."
        )
    # The weights that train are the checkpoint's; what they are compared with, or added to, is not in it.
    asks = trainer.reference is not None or is_peft_model(trainer.model)
    # Other processes may load a model without its weights, which come from the first.
    (entered,) = broadcast_object_list([trainer.entered])
    if asks and facts.get("entered", entered) != entered:
        raise ValueError(
            f"{folder} was made by a run that began with other weights than this model has, which the checkpoint's "
            "would be compared with or added to. Pass the model that the run began with; the checkpoint's weights are "
            "loaded on resume."
        )


def check_goes_on(folder: str, facts: dict[str, Any]) -> None:
    """Raises `ValueError` for a checkpoint without the optimizer's state; called where there are steps to come."""
    if not facts.get("has_optimizer", True):
        raise ValueError(
            f"{folder} holds no optimizer state (`save_only_model`, or the run was over), and this run has steps to "
            f"come: they would be others. Start anew, from {folder} as the model if that is meant."
        )


def rows_of(trainer) -> dict[str, str]:
    """Role to a hash of the rows that are trained on, in their order; computed once."""
    pairs = trainer.train_dataset
    if not hasattr(pairs, "hashes"):
        pairs.hashes = {role: hash_table(rows) for role, rows in pairs.roles.items()}
    return pairs.hashes
