# SPDX-License-Identifier: Apache-2.0
"""Writes a report in all its forms."""

import logging
from pathlib import Path

from ..files import write_json, write_text
from .figures import save_plots
from .markdown import render_markdown
from .page import render_page
from .schema import json_ready, validate_report


logger = logging.getLogger(__name__)


def write_report(report: dict, output_dir: str | Path) -> dict[str, Path]:
    """Writes `report.json`, `report.md`, `report.html` and `plots/*.png`, all from the same numbers.

    Args:
        report (`dict`):
            The structure of a `report.json`. Numbers that JSON cannot hold (infinite or NaN, as a diverged loss)
            become null and show as undefined.
        output_dir (`str` or `Path`):
            Made if absent; files of an earlier report there are replaced.

    Returns:
        `dict[str, Path]`: by name within `output_dir`: `report.json`, `report.md`, `report.html` and, where the report
        has numbers for them, `plots/forget_vs_utility.png`, `plots/loss_curves.png`, `plots/metrics.png`.

    Raises:
        `ValueError`: if the report does not fit its schema; nothing is written then.
    """
    report = validate_report(json_ready(report))
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("report.json", "report.md", "report.html")}
    write_json(paths["report.json"], report, indent=1, ensure_ascii=False, allow_nan=False)
    plots = save_plots(report, folder / "plots")
    write_text(paths["report.md"], render_markdown(report, plots, folder))
    write_text(paths["report.html"], render_page(report))
    logger.info("Wrote the report to %s", folder)
    return paths | {f"plots/{path.name}": path for path in plots.values()}
