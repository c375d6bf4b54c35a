# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit KIND ...`: looks at a checkpoint for what an ordinary evaluation does not see."""

from difflib import get_close_matches
from importlib import import_module

from ..runs.help import entries


# kind -> (module, what it does)
KINDS = {
    "backdoor": ("audit_backdoor", "does a trigger bring back what was unlearned?"),
    "scan": ("audit_scan", "is there a trigger in it that nobody told of?"),
    "privacy": ("audit_privacy", "can forgotten rows be told from rows that were never seen?"),
}
USAGE = "usage: hf-unlearn audit KIND ..."


def main(argv: list[str]) -> None:
    """Hands the rest of the line to the audit that is named."""
    if argv and argv[0] in KINDS:
        import_module(f".{KINDS[argv[0]][0]}", __package__).main(argv[1:])
        return
    if argv and argv[0] in ("-h", "--help"):
        kinds = entries((name, what) for name, (_, what) in KINDS.items())
        print(f"{USAGE}\n\n{kinds}\n\n`hf-unlearn audit KIND --help` tells more.")
        return
    near = get_close_matches(argv[0], KINDS, n=1) if argv else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    asked = f"Unknown audit {argv[0]!r}.{hint}" if argv else "No audit is named."
    raise ValueError(f"{asked} Allowed: {', '.join(KINDS)}.")
