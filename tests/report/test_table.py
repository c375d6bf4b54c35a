# SPDX-License-Identifier: Apache-2.0
"""One table on the terminal and as markdown."""

import io

from rich.console import Console

from hf_unlearn.report.style import CIRCLE, TARGET, Look
from hf_unlearn.report.table import Cell, Name, Table, escape


TABLE = Table(
    ["Model", "share, %"],
    [
        [Name("a|b_c", Look(TARGET, CIRCLE, "solid"), unlearned=True), Cell("93.8", "[79.2, 99.2]")],
        ["plain", Cell("1.7", "[0.1, 4.0]", ("p = 0.2 | one",))],
        ["short", 3],
    ],
    title="Shares",
    numbers=True,
)


def test_markdown_keeps_each_row_on_its_line():
    assert TABLE.markdown().splitlines() == [
        "| Model | share, % |",
        "| --- | --: |",
        r"| ● a\|b\_c | 93.8<br>[79.2, 99.2] |",
        r"| plain | **1.7** [0.1, 4.0]<br>p = 0.2 \| one |",
        "| short | 3 |",
    ]
    assert "| 93.8 [79.2, 99.2] |" in TABLE.markdown(joint=" ")


def test_the_terminal_shows_what_is_smaller_below():
    out = io.StringIO()
    Console(file=out, width=60).print(TABLE.terminal())
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[0] == "Shares"
    shown = [line.split() for line in lines if line and "─" not in line][1:]
    assert shown == [
        ["Model", "share,", "%"],
        ["●", "a|b_c", "93.8"],
        ["79.2–99.2"],
        ["plain", "1.7"],
        ["0.1–4.0"],
        ["p", "=", "0.2", "|", "one"],
        ["short", "3"],
    ]


def test_what_markdown_would_read_is_escaped():
    assert escape("a|b\n*c* <d> `e` $f$") == r"a\|b \*c\* &lt;d&gt; \`e\` \$f\$"
