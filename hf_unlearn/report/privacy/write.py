# SPDX-License-Identifier: Apache-2.0
"""Writes and prints what membership-inference attacks found. Reads only the content of `privacy.json`."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...files import write_json, write_text
from ..schema import load_audit
from .view import attacks_of, chance_cell, fpr_name, interval_cell, rate_cell, rate_of, worst_of, zero_fp_of


if TYPE_CHECKING:
    from rich.console import Console


PRIVACY_SCHEMA = 1


def write_privacy_report(report: dict, output_dir: str | Path) -> dict[str, Path]:
    """Writes `privacy.json`, `privacy.md` and `plots/privacy_*.png` and `.pdf`.

    Args:
        report (`dict`):
            `schema_version`, `title`, `created`, `command`, `versions`, `notes`, and `models`: each `name`, `kind`,
            `path` and what `Privacy.to_dict` gives.
        output_dir (`str` or `Path`):
            Made if absent.

    Returns:
        `dict[str, Path]`: by name within `output_dir`.
    """
    from .figures import save_privacy_plots
    from .markdown import render_privacy_markdown

    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("privacy.json", "privacy.md")}
    write_json(paths["privacy.json"], report, ensure_ascii=False, allow_nan=False)
    plots = save_privacy_plots(report, folder / "plots")
    write_text(paths["privacy.md"], render_privacy_markdown(report, plots, folder))
    return paths | {f"plots/{path.name}": path for path in plots.values()}


def load_privacy_report(path: str | Path) -> dict:
    """The content of a `privacy.json`, given as the file or its folder.

    Raises:
        `ValueError`: if there is none, or it is of another version.
    """
    return load_audit(path, "privacy", PRIVACY_SCHEMA)


def print_privacy_report(report: dict, console: "Console | None" = None) -> None:
    """Prints one table a model: every attack's AUC and TPR, and the best of all with its chance level."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    for model in report["models"]:
        fprs = model["settings"]["fprs"]
        resolved = [fpr for fpr in fprs if worst_of(model, fpr)["value"] is not None]
        above_all = f"above all {model['settings']['n_calibration']:,}"
        heads = ("attack", "AUC", above_all, *(f"TPR at {fpr_name(fpr)}" for fpr in resolved))
        table = Table(*heads, title=model["name"])
        for attack in attacks_of(model):
            cells = [rate_cell(rate_of(model, attack, fpr)) for fpr in resolved]
            auc, zero = interval_cell(model["metrics"][f"{attack}/auc"]), rate_cell(zero_fp_of(model, attack))
            table.add_row(attack, auc, zero, *cells)
        if resolved:
            table.add_section()
            table.add_row("best, any tail", "", "", *(rate_cell(worst_of(model, fpr)) for fpr in resolved))
            table.add_row("its chance level", "", "", *(chance_cell(worst_of(model, fpr)) for fpr in resolved))
        console.print(table)
        for fpr in fprs:
            metric = worst_of(model, fpr)
            if metric["value"] is None:
                console.print(f"  TPR at {fpr_name(fpr)}: {rate_cell(metric)} calibration non-members", style="dim")
