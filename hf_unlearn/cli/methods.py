# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn methods`: what can be asked for in a recipe's `method:`."""

import argparse


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="hf-unlearn methods", description=__doc__)
    parser.parse_args(argv)

    from dataclasses import MISSING, fields

    from rich.console import Console
    from rich.table import Column, Table

    from ..config import UnlearnConfig
    from ..methods import METHODS

    shared = {field.name for field in fields(UnlearnConfig)}
    table = Table(Column("method", no_wrap=True), "what it is", "own settings (default)", "paper")
    for name, (config, trainer) in METHODS.items():
        defaults = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(config)
            if field.name not in shared
        }
        own = [f"{name} ({default})" for name, default in defaults.items()]
        paper = f"hf.co/papers/{trainer.paper}" if trainer.paper else "-"
        table.add_row(name, METHODS.describe(name), "\n".join(own) or "-", paper)
    Console().print(table)
