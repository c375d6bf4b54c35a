# SPDX-License-Identifier: Apache-2.0
"""The seed of everything that is drawn among rows."""


def data_seed(args) -> int:
    """`data_seed`, or `seed` where it is left out."""
    return args.seed if args.data_seed is None else args.data_seed
