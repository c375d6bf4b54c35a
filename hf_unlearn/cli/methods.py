# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn methods [NAME ...]`: the values of a recipe's `method:` to choose from; of those named, all there is.

A line a method, by family: what it requires beside forget rows, what a step costs beside fine-tuning, and what it runs
with.
Named ones are described with their equation, their cost and their settings.
"""

import textwrap

from ..runs.help import CommandParser, entries, fill, width


HEAD = ("method", "requires", "time", "mem.", "runs with", "paper")
# Widths of the columns; what a method does follows where the terminal is wide enough.
COLUMNS = (18, 25, 4, 4, 10, 10)
LEGEND = (
    "requires: rows and frozen models beside forget rows; in parentheses, with some retain terms only. time, mem.: of "
    "a step, in multiples of fine-tuning on the same rows; - where it is not measured. runs with: all is ZeRO, FSDP "
    "and LoRA; * with exceptions."
)


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn methods", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods to describe (default: a table of all)")
    named = parser.parse_args(argv).names

    from ..bench.measured import about_measured
    from ..methods import METHODS
    from ..methods.families import FAMILIES, family_of

    for name in named:
        METHODS.check(name)
        _describe(name)
    if named:
        own = "`own` are arguments that only this method has, with their defaults; for their help, see"
        print(fill(f"{own} `hf-unlearn run --help --method NAME`."))
        return
    print(_line(HEAD, "what it does"))
    families = {family: what for family, (what, _) in FAMILIES.items()}
    for family in (*families, None):
        names = [name for name in METHODS if family_of(name) == family]
        if names:
            print("\n" + textwrap.shorten(f"{family}: {families[family]}" if family else "others", width()))
            print("\n".join(map(_told, names)))
    about = f"{LEGEND}\n\n{about_measured()} Equation, passes and settings: `hf-unlearn methods NAME`."
    print("\n" + fill(about))


def _line(cells, what: str) -> str:
    """Cells in their columns, and as much of what a method does as the terminal is wide."""
    line = "  " + " ".join(f"{cell:<{size}}" for cell, size in zip(cells, COLUMNS, strict=True))
    left = width() - len(line) - 1
    return f"{line} {textwrap.shorten(what, left, placeholder=' ...')}" if left > 20 else line.rstrip()


def _told(name: str) -> str:
    """A method in a line."""
    from ..runs.methods_table import NONE, SHARDED, traits_of

    traits = traits_of(name)
    found = [] if traits.reference == NONE else traits.reference.split(", ")
    # `reference with ...` is needed with some retain terms only.
    requires = [f"({one.split()[0]})" if " " in one else one for one in found]
    requires = [one.replace("reference", "ref") for one in requires]
    requires += ["answers"] if traits.alternates else []
    requires += {"required": ["retain"], "optional": ["(retain)"]}.get(traits.retain, [])
    engines, _, limits = traits.engines.partition("; ")
    runs = ("all" if engines == SHARDED else engines) + ("*" if limits else "")
    cells = (name, ", ".join(requires) or NONE, traits.time, traits.memory, runs, traits.paper or NONE)
    return _line(cells, traits.what)


def _describe(name: str) -> None:
    from ..runs.methods_table import NONE, about_of, own_settings, traits_of

    traits, own = traits_of(name), own_settings(name)
    requires = [traits.reference] if traits.reference != NONE else []
    requires += [f"retain rows ({traits.retain})"] if traits.retain != NONE else []
    requires += ["another answer to each forget prompt"] if traits.alternates else []
    text, equation = about_of(name)
    about = [("what", f"{traits.what[0].upper()}{traits.what[1:]}. {text}")]
    about += [("equation", equation)] if equation else []
    about += [("requires", ", ".join(requires) or "forget rows alone"), ("family", traits.family)]
    about += [("forwards", traits.forwards)] if traits.forwards != NONE else []
    if traits.time != NONE:
        cost = f"{traits.time} times the time and {traits.memory} times the memory of fine-tuning on the same rows"
        about += [("cost", f"{cost}{traits.more and f': {traits.more}'}")]
    about += [("runs with", f"{traits.engines}; {traits.models} models")]
    about += [("paper", f"https://hf.co/papers/{traits.paper}")] if traits.paper else []
    about += [("own", ", ".join(f"{field} ({default})" for field, default in own.items()))] if own else []
    print(f"{name}\n{entries(about)}\n")
