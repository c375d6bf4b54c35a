# SPDX-License-Identifier: Apache-2.0
"""What is decided before the first step by looking at the pairs that training will see."""

import logging
import math

from ..data.collator import rows_of
from ..data.pairing import RolePairs
from .passes import cheaper_shape


logger = logging.getLogger(__name__)

# Batches whose tokens are counted to choose between one padded pass and a pass a role.
SAMPLED_BATCHES = 32


# In passes of their own the two sides of `grad_ortho` share nothing: two backward passes then cost what one does.
APART = "split"


def shape_of(pairs: RolePairs, args) -> str:
    """How a step's rows go through the model: as asked, or, for `auto`, what fewer tokens speak for."""
    if args.forward_passes != "auto":
        return args.forward_passes
    if args.grad_ortho != "off":
        return APART
    sample = range(min(len(pairs), SAMPLED_BATCHES * args.per_device_train_batch_size))
    lengths = [
        {
            (role, number): len(row["input_ids"])
            for role, found in pair.items()
            for number, row in enumerate(rows_of(found))
        }
        for pair in (pairs[position] for position in sample)
    ]
    shape, share = cheaper_shape(lengths, args.per_device_train_batch_size)
    if shape == "split":
        logger.info(
            "A forward pass a role: with padding it takes %.0f %% of the tokens that one pass for all roles takes.",
            100 * share,
        )
    return shape


def needed_rows(pairs: RolePairs, args) -> dict[str, list[int]]:
    """Rows that training will see; all of a role's where those are half of them or more, so that runs of other seeds
    or lengths need the same."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    # A run without steps may do something else to the model.
    epochs = max(math.ceil(args.num_train_epochs), 1)
    if args.max_steps > 0:
        epochs = math.ceil(args.max_steps / math.ceil(len(pairs) / batch))
    needed = {}
    for role, rows in pairs.roles.items():
        visited = pairs.visited(role, epochs * len(pairs))
        needed[role] = visited if 2 * len(visited) < len(rows) else list(range(len(rows)))
    return needed
