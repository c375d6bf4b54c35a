# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn methods`: lists the values of a recipe's `method:`."""

from ..runs.help import CommandParser, entries, fill


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn methods", description=__doc__)
    parser.parse_args(argv)

    from dataclasses import MISSING, fields

    from ..methods import METHODS
    from ..training.config import UnlearnConfig

    shared = {field.name for field in fields(UnlearnConfig)}
    for name, (config, trainer) in METHODS.items():
        own = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(config)
            if field.name not in shared
        }
        about = [("what", METHODS.describe(name))]
        about += [("paper", f"https://hf.co/papers/{trainer.paper}")] if trainer.paper else []
        about += [("own", ", ".join(f"{field} ({default})" for field, default in own.items()))] if own else []
        print(f"{name}\n{entries(about)}\n")
    own = "`own` are arguments that only this method has, with their defaults; for their help, see"
    print(fill(f"{own} `hf-unlearn run --help --method NAME`."))
