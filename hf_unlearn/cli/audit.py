# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit KIND ...`: audits of a checkpoint beyond the metrics of `hf-unlearn eval`."""

import sys
from difflib import get_close_matches

from ..audit.registry import AUDITS
from ..runs.attacks import DESCRIPTION
from ..runs.blocks import NAME
from ..runs.help import entries


META = "meta"
OTHERS = {NAME: DESCRIPTION, META: "can these audits be trusted? They are tried on models that know, or do not"}
USAGE = "usage: hf-unlearn audit KIND ..."


def main(argv: list[str]) -> None:
    """Audits what is named by the kind that is named."""
    if argv and argv[0] in AUDITS:
        _audit(argv[0], list(argv[1:]))
        return
    if argv and argv[0] == NAME:
        _attacks(list(argv[1:]))
        return
    if argv and argv[0] == META:
        _meta(list(argv[1:]))
        return
    if argv and argv[0] in ("-h", "--help"):
        kinds = entries([*((name, AUDITS.describe(name)) for name in AUDITS), *OTHERS.items()])
        print(f"{USAGE}\n\n{kinds}\n\nSee `hf-unlearn audit KIND --help`.")
        return
    near = get_close_matches(argv[0], [*AUDITS, *OTHERS], n=1) if argv else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    asked = f"Unknown audit {argv[0]!r}.{hint}" if argv else "No audit is named."
    raise ValueError(f"{asked} Allowed: {', '.join([*AUDITS, *OTHERS])}.")


def _attacks(argv: list[str]) -> None:
    """Makes several audits of robustness, and one report of them."""
    from ..audit.robustness.several.view import VIEW
    from ..data.qa import QAFormat
    from ..runs.attacks import attacks_arguments, audit_attacks
    from ..runs.parser import StrictParser

    parts, given = StrictParser((attacks_arguments(), QAFormat), prog=f"hf-unlearn audit {NAME}").parse(argv)
    values = {name: value for part in parts for name, value in vars(part).items() if name in given}
    found, files = audit_attacks(parts[0], values)
    VIEW.show(found)
    print(f"{VIEW.word}: {files['md']}")


def _meta(argv: list[str]) -> None:
    """Tries the audits of robustness on models of the embedded world."""
    from ..runs.meta.arguments import MetaArguments
    from ..runs.parser import StrictParser

    ((args,), _) = StrictParser((MetaArguments,), prog=f"hf-unlearn audit {META}").parse(argv)

    from ..data.worlds.people import build_world
    from ..report.meta import PATHS, show_meta
    from ..runs.meta.evaluate import evaluate_audits

    show_meta(evaluate_audits(args.plan, build_world(), args.output_dir))
    print(f"Report: {args.output_dir}/{PATHS['md']}")


def _audit(name: str, argv: list[str]) -> None:
    """Measures what is named, writes and prints what was found."""
    from ..data.qa import QAFormat
    from ..runs.launch import launch, take_launch_options
    from ..runs.parser import StrictParser

    kind = AUDITS[name]
    accelerate_config, options = take_launch_options(argv) if kind.shares_work else (None, {})
    (args, qa), _ = StrictParser((kind.arguments, QAFormat), prog=f"hf-unlearn audit {name}").parse(argv)
    if accelerate_config is not None:
        kind.prepare(args, qa)  # A mistake is told once, before any process starts.
        launch("hf_unlearn.cli.audit", accelerate_config, [name, *argv], options)

    from ..runs.audits import audit

    found, files = audit(kind, args, qa)
    if files:
        kind.view.show(found)
        print(f"{kind.view.word}: {files['md']}")


if __name__ == "__main__":
    from .main import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))
