# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn prepare BENCHMARK --model_name_or_path BASE`: makes the models of a benchmark from a base model.

`target` is trained on all rows, `retrained` on the retain rows, with the same settings; `--retrained 3` makes
`retrained`, `retrained-1` and `retrained-2`, of other seeds. Recipes name them as `BENCHMARK/NAME/target` and so on.
They are kept by what they depend on, and a run that was killed goes on. Settings are those of the recipe
`recipes/BENCHMARK/prepare.yaml`; further fields override them. The models of the embedded worlds are made too.
"""

import os
from contextlib import nullcontext

from ..data.benchmarks import BENCHMARKS, EMBEDDED
from ..runs.help import CommandParser


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn prepare", description=__doc__)
    parser.add_argument("benchmark", metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument("--model_name_or_path", metavar="BASE", help="folder or Hub id of the base model")
    parser.add_argument("--name", help="what recipes call the base model (default: its last part, in lower case)")
    parser.add_argument(
        "--retrained", type=int, default=1, metavar="N", help="how many retrained models (%(default)s)"
    )
    parser.add_argument("--recipe", help="recipe of method `retrain`, instead of recipes/BENCHMARK/prepare.yaml")
    args, words = parser.parse_known_args(argv)
    if args.benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark={args.benchmark!r}; allowed: {', '.join(BENCHMARKS)}.")
    if args.retrained < 1:
        raise ValueError(f"--retrained {args.retrained}; give at least 1.")
    embedded = [name for name in EMBEDDED if name.startswith(f"{args.benchmark}/")]
    if embedded:
        from ..data.benchmarks import resolve_model

        if args.model_name_or_path or words:
            raise ValueError(
                f"The models of {args.benchmark!r} are made from weights of their own; give its name only."
            )
        for name in embedded:
            print(f"{name}: {resolve_model(name)}")
        return

    from ..runs.prepare_models import Making

    making = Making(args.benchmark, args.model_name_or_path, args.name, args.recipe, words)
    # Only the first process of a launch: the others meet it in training.
    with making.alone() if os.environ.get("RANK", "0") == "0" else nullcontext():
        _make(making, args.retrained)


def _make(making, retrained: int) -> None:
    from .unlearn import unlearn

    recipes = making.recipes(retrained)
    for number, (kind, recipe) in enumerate(recipes.items(), start=1):
        knows = making.found(kind)
        if knows is None:
            print(f"[{number}/{len(recipes)}] {making.named(kind)}")
            unlearn(recipe, show=False)
            knows = making.finish(kind, recipe)
        told = ", ".join(f"{name} {value:.3f}" for name, value in knows.items() if value is not None)
        print(f"{making.named(kind)}: {making.folders[kind]} ({told})")
