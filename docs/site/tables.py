# SPDX-License-Identifier: Apache-2.0
"""What the documentation takes from the code: arguments, recipes, help of commands. Needs no mkdocs."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def default_of(field: dataclasses.Field):
    """A field's default, made where it comes from a factory; `MISSING` where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def own_fields(config: type, base: type) -> list[dataclasses.Field]:
    """Fields of `config` that `base` lacks or has with another default, in the order they are declared."""
    inherited = {field.name: default_of(field) for field in dataclasses.fields(base)}
    return [
        field
        for field in dataclasses.fields(config)
        if field.init and (field.name not in inherited or inherited[field.name] != default_of(field))
    ]


def arguments_table(fields: list[dataclasses.Field]) -> str:
    """Name, type, default and help of each field, as a Markdown table."""
    rows = ["| argument | type | default | |", "|---|---|---|---|"]
    for field in fields:
        # Help strings are argparse's, in which a percent sign is doubled.
        said = field.metadata.get("help", "").replace("%%", "%")
        cells = (f"`{field.name}`", f"`{type_name(field.type)}`", f"`{shown(default_of(field))}`", said)
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def type_name(kind) -> str:
    """A type as it is written in the source, without `None`, which the default shows."""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", None) or str(kind)
    name = str(kind) if "[" in str(kind) or "|" in str(kind) else name
    return re.sub(r"\s*\|\s*None\b", "", name.replace("typing.", ""))


def shown(value) -> str:
    return "required" if value is dataclasses.MISSING else repr(value)


def method_arguments(name: str) -> str:
    """The arguments that a method has beside those of every method."""
    from hf_unlearn import METHODS, UnlearnConfig

    fields = own_fields(METHODS[name][0], UnlearnConfig)
    if not fields:
        return "None of its own."
    return arguments_table(fields)


def shared_arguments() -> str:
    """The arguments of every method, less those of `transformers.TrainingArguments`."""
    from transformers import TrainingArguments

    from hf_unlearn import UnlearnConfig

    return arguments_table(own_fields(UnlearnConfig, TrainingArguments))


def recipes_of(name: str) -> list[Path]:
    """The recipes of a method, those of the embedded worlds first."""
    import yaml

    found = []
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(recipe, dict) and recipe.get("method") == name:
            found.append(path.relative_to(ROOT))
    return sorted(found, key=lambda path: ("demo" not in path.parts, len(path.parts), str(path)))


def method_recipes(name: str) -> str:
    """The first recipe in full, and the paths of the others."""
    first, *others = recipes_of(name)
    text = (ROOT / first).read_text(encoding="utf-8").strip()
    said = f"```\nhf-unlearn run {first}\n```\n\n```yaml\n{text}\n```"
    if others:
        said += "\n\nOthers: " + ", ".join(f"`{path}`" for path in others) + "."
    return said


def method_header(name: str) -> str:
    """What a method is, its classes, and its paper."""
    from hf_unlearn import METHODS

    config, trainer = METHODS[name]
    paper = getattr(trainer, "paper", None)
    cited = f", [arXiv {paper}](https://huggingface.co/papers/{paper})" if paper else ""
    return f"`method: {name}`, `{trainer.__name__}`, `{config.__name__}`{cited}: {METHODS.describe(name)}."


def cited(paper: str | None) -> str:
    """A link to a paper."""
    return f"[{paper}](https://huggingface.co/papers/{paper})" if paper else "-"


def methods_page() -> str:
    """All methods to choose from: the table, then each with its equation and what it is."""
    from hf_unlearn import METHODS
    from hf_unlearn.bench.measured import about_measured
    from hf_unlearn.methods.families import FAMILIES, family_of
    from hf_unlearn.runs.methods_table import methods_table

    table = methods_table(
        METHODS,
        lambda traits: f"[`{traits.name}`](methods/{traits.name}.md)",
        lambda traits: cited(traits.paper),
    )
    about = (
        "What each requires beside forget rows, what a step costs, and what it runs with. "
        f"{about_measured()} Forwards of a step: with a gradient + without. `hf-unlearn methods` prints this, and "
        "`hf-unlearn methods NAME` its settings."
    )
    parts = [
        "# Methods",
        "<!-- Written by `python docs/site/tables.py` from the classes and docs/methods; a test compares. -->",
        about,
        table.markdown(),
    ]
    for family, (what, _) in FAMILIES.items():
        parts.append(f"## {family[0].upper()}{family[1:]}\n\nA family that {what}.")
        parts += [_summary(name) for name in METHODS if family_of(name) == family]
    return "\n\n".join(parts) + "\n"


def _summary(name: str) -> str:
    """A method's equation and the first paragraph of its page."""
    from hf_unlearn import METHODS

    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    title, *blocks = page.split("\n\n")
    equation = next(block for block in blocks if block.startswith("$$"))
    about = next(block for block in blocks if not block.startswith("$$"))
    about = re.sub(r"\]\(([\w-]+\.md)", r"](methods/\1", about).replace("](../", "](")
    heading = f"### [{title.removeprefix('# ')}](methods/{name}.md)"
    return f"{heading}\n\n`{name}`: {METHODS.describe(name)}.\n\n{equation}\n\n{about}"


def help_of(*words: str) -> str:
    """What `hf-unlearn WORDS --help` prints."""
    from hf_unlearn.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue().strip()


def commands_page() -> str:
    """Every command with its help; of `run`, whose fields have pages of their own, only what comes before them."""
    from hf_unlearn.audit.registry import AUDITS
    from hf_unlearn.cli.main import COMMANDS

    parts = ["# Command line\n", f"```\n{help_of()}\n```\n"]
    for command in COMMANDS:
        said = help_of(command)
        if command in ("run", "plan"):
            said = said.split("\nFields (of method")[0].strip()
        parts.append(f"## `hf-unlearn {command}`\n\n```\n{said}\n```\n")
        if command == "audit":
            for kind in (*AUDITS, "robustness", "meta"):
                parts.append(f"### `hf-unlearn audit {kind}`\n\n```\n{help_of('audit', kind)}\n```\n")
    return "\n".join(parts)


def notebook_page(path: Path) -> str:
    """A notebook's cells as a page."""
    import json

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    kinds = [cell["cell_type"] for cell in cells]
    return "\n\n".join(
        f"```python\n{text}\n```" if kind == "code" else text for text, kind in zip(texts, kinds, strict=True)
    )


if __name__ == "__main__":
    (ROOT / "docs" / "methods.md").write_text(methods_page(), encoding="utf-8")
