# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn methods [NAME ...]`: the values of a recipe's `method:` to choose from; of those named, their settings.

By family, with what each requires beside forget rows, what a step costs, and what it runs with.
"""

from ..runs.help import CommandParser, entries, fill


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
    families = {family: what for family, (what, _) in FAMILIES.items()}
    for family in (*families, None):
        names = [name for name in METHODS if family_of(name) == family]
        if names:
            print(fill(f"{family}: {families[family]}" if family else "others"))
            print(entries((name, _told(name)) for name in names) + "\n")
    print(fill(f"{about_measured()} Settings: `hf-unlearn methods NAME`. The same as a table: docs/methods.md."))


def _told(name: str) -> str:
    """A method in a few lines."""
    from ..runs.methods_table import NONE, traits_of

    traits = traits_of(name)
    requires = [traits.reference] if traits.reference != NONE else []
    requires += [f"retain rows ({traits.retain})"] if traits.retain != NONE else []
    requires += ["another answer to each forget prompt"] if traits.alternates else []
    parts = [traits.what, f"requires: {', '.join(requires) or 'forget rows alone'}"]
    parts += [f"forwards: {traits.forwards}"] if traits.forwards != NONE else []
    if traits.time != NONE:
        parts.append(f"{traits.time} times the time and {traits.memory} times the memory of fine-tuning")
    parts += [f"{traits.engines}; {traits.models} models"]
    parts += [f"arXiv {traits.paper}"] if traits.paper else []
    return ". ".join(parts) + "."


def _describe(name: str) -> None:
    from ..runs.methods_table import own_settings, traits_of

    traits, own = traits_of(name), own_settings(name)
    about = [("what", _told(name)), ("family", traits.family)]
    about += [("paper", f"https://hf.co/papers/{traits.paper}")] if traits.paper else []
    about += [("own", ", ".join(f"{field} ({default})" for field, default in own.items()))] if own else []
    print(f"{name}\n{entries(about)}\n")
