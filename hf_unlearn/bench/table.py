# SPDX-License-Identifier: Apache-2.0
"""The result as a table on the terminal or in Markdown."""

from ..report.table import Cell, Table
from .cases import APART, CASES


HEADINGS = (
    "method",
    "s a step",
    "time / SFT",
    "above model, MiB",
    "memory / SFT",
    "forwards: policy + reference",
)
MORE_HEADINGS = ("processor time / SFT", "peak, MiB", "tokens/s", "tokens before the first step, by process")
MIB = 2**20


def markdown(result: dict) -> str:
    """All columns, as GitHub shows a table."""
    headings = [*HEADINGS, _rate_heading(result), *MORE_HEADINGS]
    rows = [_cells(row, result) for row in result["rows"]]
    rows = [row + [""] * (len(headings) - len(row)) for row in rows]
    return Table(headings, rows, numbers=True).markdown(joint=" ")


def print_table(result: dict, console=None) -> None:
    """Prints machine, table and how to read it; spreads stand below the medians, so that 80 columns are enough."""
    from rich.console import Console

    console = console or Console()
    console.print(describe(result), highlight=False)
    headings = [*HEADINGS, _rate_heading(result)]
    rows = [_cells(row, result)[: len(headings)] for row in result["rows"]]
    console.print(Table(headings, rows, numbers=True).terminal())
    for note in notes(result):
        console.print(note, style="dim", highlight=False)


def describe(result: dict) -> str:
    """Machine and size in a line each."""
    machine, size, settings = result["machine"], result["size"], result["settings"]
    parameters = next(row["parameters"] for row in result["rows"] if "parameters" in row)
    where = machine["accelerator"] or f"{machine['processor']}, {machine['processors']} processors"
    packages = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers"))
    return (
        f"{where}, {machine['threads']} threads, {packages}\n"
        f"{parameters / 1e6:.1f} M parameters, {size['dtype']}, {size['optim']}, {size['rows']} forget and "
        f"{size['rows']} retain rows of {size['row_length']} tokens\n"
        f"medians (min–max) of {settings['repeats']} processes of {settings['steps']} steps after {settings['warmup']}"
    )


def notes(result: dict) -> list[str]:
    """What the numbers mean and how far to trust them."""
    kind = "peak resident set, with an allocator that gives back what is freed,"
    if result["machine"]["device"] == "cuda":
        kind = "allocator's peak"
    found = [
        f"Above model: {kind} from when the model was in memory to the end of training, less what was in use then.",
        "(plain): logits of the whole vocabulary, and a second model as reference.",
    ]
    passes = [
        f"{row['label']} {', '.join(map(str, row['preparation_tokens']))}"
        for row in result["rows"]
        if any(row.get("preparation_tokens", ()))
    ]
    if passes:
        found.append(f"Tokens through the model before the first step, by process: {'; '.join(passes)}.")
    measured = {row["method"] for row in result["rows"]}
    found += [f"{case.label}: {case.more}." for case in CASES.values() if case.more and case.method in measured]
    if measured >= {case.method for case in CASES.values()}:
        found += [f"Apart, without a ratio to a step: {name} ({why})." for name, why in APART.items()]
    if result["load_before"] > 0.5:
        found.append(f"The machine was busy: load {result['load_before']:.1f} before the first run. Times are rough.")
    return found


def _cells(row: dict, result: dict) -> list[str | Cell]:
    """Every column: a median and, where they differ as printed, `(min–max)`."""
    if "error" in row:
        return [row["label"], f"failed: {row['error'][:60]}"]
    return [
        row["label"],
        _spread(row["step_seconds"], "{:.3g}"),
        _spread(row["time_ratio"], "{:.2f}"),
        _spread(row["above_model_bytes"], "{:.0f}", MIB),
        _spread(row["memory_ratio"], "{:.2f}"),
        f"{row['policy_forwards']:g} + {row['reference_forwards']:g}",
        _rate(row, result),
        _spread(row["cpu_time_ratio"], "{:.2f}"),
        f"{row['peak_bytes']['median'] / MIB:.0f}",
        f"{row['tokens_per_second']['median']:.0f}",
        ", ".join(map(str, row["preparation_tokens"])),
    ]


def _spread(value: dict, form: str, unit: float = 1) -> Cell:
    middle, low, high = (form.format(value[name] / unit) for name in ("median", "min", "max"))
    return Cell(middle, "" if low == high else f"({low}–{high})")


def _rate(row: dict, result: dict) -> str:
    value = row["utilisation" if _knows_peak(result) else "flops_per_second"]
    if value is None:
        return "-"
    return f"{value['median']:.1%}" if _knows_peak(result) else f"{value['median'] / 1e9:.0f}"


def _rate_heading(result: dict) -> str:
    return "utilisation" if _knows_peak(result) else "GFLOP/s"


def _knows_peak(result: dict) -> bool:
    return any(row.get("utilisation") for row in result["rows"])
