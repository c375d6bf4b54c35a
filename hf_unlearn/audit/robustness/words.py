# SPDX-License-Identifier: Apache-2.0
"""Texts as words: whether one stands in another, whatever the case and the punctuation."""


def words(text: str) -> str:
    """The words of a text in lower case, with one space around each; `" "` for none."""
    found = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return f" {' '.join(found)} " if found else " "


def stands_in(phrase: str, text: str) -> bool:
    """Whether the words of `phrase` stand in `text` one after the other; never for a phrase without any."""
    wanted = words(phrase)
    return wanted != " " and wanted in words(text)
