# SPDX-License-Identifier: Apache-2.0
"""The method that a recipe or the command line names."""

from difflib import get_close_matches

from ..methods import METHODS
from .field_names import fields_of


def method_of(content: dict, words: list[str]) -> str:
    """The method decides which config the rest is parsed with, so it is read first."""
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--method"]
    named += [word.split("=", 1)[1] for word in words if word.startswith("--method=")]
    method = named[-1] if named else content.get("method")
    if method is None and ("--help" in words or "-h" in words):
        return next(iter(METHODS))
    if str(method) not in METHODS:
        near = get_close_matches(str(method), METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method={method!r}; allowed: {', '.join(METHODS)}.{hint}")
    return method


def check_method_of_file(content: dict, method: str, path: str | None) -> None:
    """Refuses a recipe of another method than is asked for, if it holds settings of that method alone."""
    written = content.get("method")
    if written == method or written not in METHODS:
        return
    theirs, ours = (fields_of(*METHODS.where(name)) for name in (written, method))
    if left := [name for name in content if name in theirs and name not in ours]:
        raise ValueError(
            f"{path} is a recipe of {written!r}; {', '.join(left)} in it {'is' if len(left) == 1 else 'are'} of that "
            f"method alone, and {method!r} is asked for. Leave out what {method!r} has not, or begin with a recipe of "
            f"that; `hf-unlearn methods {method}` lists its settings."
        )
