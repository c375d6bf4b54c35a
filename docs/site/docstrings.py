# SPDX-License-Identifier: Apache-2.0
"""Docstrings are written as in transformers and TRL; mkdocstrings has other forms for mathematics, links and types."""

import re

import griffe


class HuggingFaceStyle(griffe.Extension):
    """Mathematics between `\\\\(` and `\\\\)`, names as [`Name`] or [`~module.Name`], types in backticks."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = translated(obj.docstring.value, obj)


def translated(text: str, obj: griffe.Object) -> str:
    text = re.sub(r"\\\\?\(\s*(.+?)\s*\\\\?\)", r"$\1$", text, flags=re.DOTALL)
    # `name (`type`, *optional*): ...` of an argument: griffe takes what stands in parentheses as an annotation.
    text = re.sub(
        r"^(\s+\*{0,2}\w[\w, *]*) \(([`\[][^)]*)\):",
        lambda found: f"{found[1]} ({bare(found[2])}):",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(r"^(\s+)`([\w\[\], .|]+)`:", r"\1\2:", text, flags=re.MULTILINE)
    # A second line of an error's description is indented by us no further than the first.
    text = re.sub(
        r"(?<=\nRaises:\n)(    .*\n?)+", lambda found: re.sub(r"\n    (?!\w+:)", r"\n        ", found[0]), text
    )
    return re.sub(r"\[`(~?)([\w.]+)`\]", lambda found: link(found[1], found[2], obj), text)


def bare(kind: str) -> str:
    """A type without marks: [`~peft.PeftModel`] is PeftModel."""
    kind = re.sub(r"\[`(?:~[\w.]*?)?(\w+)`\]", r"\1", kind)
    return kind.replace("`", "").replace("*", "")


def link(short: str, name: str, obj: griffe.Object) -> str:
    """A link where the name is one of the reference's, else the name alone."""
    text = name.rsplit(".", 1)[-1] if short else name
    path = name
    if "." not in name:
        try:
            path = obj.resolve(name)
        except griffe.NameResolutionError:
            return f"`{text}`"
    return f'<autoref optional identifier="{path}">`{text}`</autoref>'
