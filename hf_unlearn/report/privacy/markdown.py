# SPDX-License-Identifier: Apache-2.0
"""`privacy.md`: every number with its interval, chance level and what could not be resolved."""

from pathlib import Path

from ..table import Table
from .view import (
    TAIL_HEADS,
    TAIL_WORDS,
    attacks_of,
    chance_cell,
    defined_scores,
    differences,
    fpr_name,
    interval_cell,
    rate_cell,
    rate_of,
    representations_of,
    tail_cells,
    worst_of,
    zero_fp_of,
)


def render_privacy_markdown(report: dict, plots: dict[str, Path], folder: Path) -> str:
    """The report as markdown.

    Args:
        report (`dict`): the content of a `privacy.json`.
        plots (`dict[str, Path]`): PNGs by name.
        folder (`Path`): where the file will lie; links are relative to it.
    """
    lines = [f"# {report['title']}", ""]
    n = report["models"][0]["settings"]["n"]
    calibration = report["models"][0]["settings"]["n_calibration"]
    sizes = (
        f"{n['forget']:,} members (forget rows), {n['nonmember']:,} non-members, of which {calibration:,} set the "
        f"thresholds and {n['nonmember'] - calibration:,} count the false positives. Cells: value [95 % interval]."
    )
    lines += [sizes, ""]
    for model in report["models"]:
        lines += _model(model)
    for name, path in plots.items():
        lines += [f"![{name}]({path.relative_to(folder).as_posix()})", ""]
    lines += ["## How to read this", ""] + [f"- {note}" for note in report["notes"]]
    if report.get("command"):
        lines += ["", "```", report["command"], "```"]
    return "\n".join(lines) + "\n"


def _model(model: dict) -> list[str]:
    fprs = model["settings"]["fprs"]
    names = attacks_of(model)
    metrics = model["metrics"]
    shows_control = any(f"{name}/retain_auc" in metrics for name in names)
    above_all = f"above all {model['settings']['n_calibration']:,} (no false positive)"
    heads = ["attack", "AUC", *(["AUC of retain rows"] if shows_control else []), above_all]
    rows = []
    for name in names:
        control = metrics.get(f"{name}/retain_auc")
        cells = [name, interval_cell(metrics[f"{name}/auc"])]
        cells += ([interval_cell(control) if control else "-"]) if shows_control else []
        cells.append(rate_cell(zero_fp_of(model, name)))
        rows.append(cells + [rate_cell(rate_of(model, name, fpr)) for fpr in fprs])
    lines = [f"## {model['name']} ({model['kind']})", "", "Forget rows that score *above* the threshold:", ""]
    lines += _table([*heads, *(f"TPR at {fpr_name(fpr)}" for fpr in fprs)], rows)
    lines += _tails(model, names, fprs)
    lines += ["The best of all attacks and tails, beside what the best of as many meaningless ones reaches:", ""]
    worst = [worst_of(model, fpr) for fpr in fprs]
    rows = [
        [
            fpr_name(fpr),
            rate_cell(metric),
            metric["details"].get("attack", "-"),
            _achieved(metric),
            chance_cell(metric),
        ]
        for fpr, metric in zip(fprs, worst, strict=True)
    ]
    lines += _table(["FPR", "TPR", "attack", "achieved FPR", "chance level of the best"], rows)
    accuracy = metrics.get("scrub/accuracy")
    if accuracy is not None and accuracy["value"] is not None:
        spread = accuracy["details"]["standard_deviation"]
        told = f"{accuracy['value']:.3f} ± {spread:.3f}"
        lines += [f"Accuracy of the SCRUB repository's attack: {told} (0.5 is ideal).", ""]
    lines += _confidences(model)
    lines += _representations(model)
    compared = list(differences(model))
    if compared:
        lines += ["Less the retrained model, on the same rows:", ""]
        rows = [[key, f"{m['details']['retrained']:.3f}", interval_cell(m, sign=True)] for key, m in compared]
        lines += _table(["metric", "retrained", "difference"], rows)
    return lines


def _tails(model: dict, names: list[str], fprs: list[float]) -> list[str]:
    resolved = [fpr for fpr in fprs if any(rate_of(model, name, fpr)["value"] is not None for name in names)]
    if not resolved:
        return []
    rows = [
        [f"{name}, {TAIL_WORDS[tail]}", *(rate_cell(rate_of(model, name, fpr, tail)) for fpr in resolved)]
        for name in names
        for tail in ("lower", "both")
    ]
    lines = ["Forgotten too much? Rows that score *below*, or on either side:", ""]
    return lines + _table(["attack", *(f"TPR at {fpr_name(fpr)}" for fpr in resolved)], rows)


def _confidences(model: dict) -> list[str]:
    if "confidence" not in attacks_of(model):
        return []
    sets = zip(("forget rows", "non-members"), defined_scores(model, "confidence"), strict=True)
    lines = ["The largest probability (a few rows that a model is sure of vanish in a mean):", ""]
    return lines + _table(["rows", *TAIL_HEADS], [[name, *tail_cells(values)] for name, values in sets])


def _representations(model: dict) -> list[str]:
    if not model.get("representations"):
        return []
    found = representations_of(model)
    if found is None:
        return ["There is no picture of its representations: fewer than two of their features vary.", ""]
    share, most = 100 * sum(found["variance_shares"]), found["most_rows"]
    told = f"The picture of its representations has {share:.3g} % of their variance, and {most:,} rows a set at most."
    return [told, ""]


def _achieved(metric: dict) -> str:
    return "-" if metric["value"] is None else f"{metric['details']['achieved_fpr']:.3g}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [Table(heads, rows).markdown(), ""]
