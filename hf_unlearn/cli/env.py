# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn env`: what a bug report needs."""

import argparse


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="hf-unlearn env", description=__doc__).parse_args(argv)

    from ..versions import versions

    for name, value in versions(machine=True).items():
        print(f"- {name}: {value}")
