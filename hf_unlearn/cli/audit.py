# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit KIND ...`: looks at a checkpoint for what an ordinary evaluation does not see."""

from difflib import get_close_matches
from importlib import import_module

from ..audit.registry import AUDITS
from ..runs.help import entries


# Shares its work among several processes, and so has a command of its own.
LAUNCHED = {"backdoor": ("audit_backdoor", "does a trigger bring back what was unlearned?")}
KINDS = {**{name: what for name, (_, what) in LAUNCHED.items()}, **{name: AUDITS.describe(name) for name in AUDITS}}
USAGE = "usage: hf-unlearn audit KIND ..."


def main(argv: list[str]) -> None:
    """Hands the rest of the line to the audit that is named."""
    if argv and argv[0] in LAUNCHED:
        import_module(f".{LAUNCHED[argv[0]][0]}", __package__).main(argv[1:])
        return
    if argv and argv[0] in AUDITS:
        _audit(argv[0], list(argv[1:]))
        return
    if argv and argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\n{entries(KINDS.items())}\n\n`hf-unlearn audit KIND --help` tells more.")
        return
    near = get_close_matches(argv[0], KINDS, n=1) if argv else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    asked = f"Unknown audit {argv[0]!r}.{hint}" if argv else "No audit is named."
    raise ValueError(f"{asked} Allowed: {', '.join(KINDS)}.")


def _audit(name: str, argv: list[str]) -> None:
    """Measures what is named, writes and prints what was found."""
    from ..data.qa import QAFormat
    from ..runs.parser import StrictParser

    kind = AUDITS[name]
    (args, qa), _ = StrictParser((kind.arguments, QAFormat), prog=f"hf-unlearn audit {name}").parse(argv)

    from ..runs.audits import audit

    found, files = audit(kind, args, qa)
    kind.view.show(found)
    print(f"{kind.view.word}: {files['md']}")
