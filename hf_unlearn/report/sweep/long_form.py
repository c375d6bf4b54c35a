# SPDX-License-Identifier: Apache-2.0
"""One number a line: every metric of every run, as data frames and plotting libraries want it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files import write_csv
from ..privacy.view import fpr_name


COLUMNS = (
    *("experiment", "dataset", "model", "method", "variant", "seed", "tag", "target", "alpha", "beta"),
    *("metric", "split", "attack", "fpr_target", "fpr_achieved", "value", "n_members", "n_nonmembers", "n"),
    *("ci_low", "ci_high", "resolved", "runtime_s", "flops", "config_hash"),
)


def write_long(sweep: dict[str, Any], path: Path) -> None:
    """Writes `long.csv`; what is undefined or unresolved is an empty cell."""
    write_csv(path, COLUMNS, long_rows(sweep))


def long_rows(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of `long.csv`: baselines under their kind as method, then all runs as they ended, also of the tuning
    seed.

    Args:
        sweep (`dict`): the content of `sweep.json`.
    """
    name = sweep["settings"]["name"]
    for one in sweep["baselines"]:
        about = {"dataset": one["dataset"], "model": one["path"], "method": one["kind"], "target": one["target"]}
        yield from _rows_of(one, {"experiment": name, **about})
    for run in sweep["runs"]:
        fields = run["fields"]
        about = {key: run[key] for key in ("dataset", "model", "method", "seed", "target")}
        about["variant"] = " ".join(part for part in (run["label"], run["variant"]) if part)
        about |= {"alpha": fields.get("alpha"), "beta": fields.get("beta"), "tag": " ".join(run["tags"])}
        about |= {"runtime_s": run["seconds"], "flops": run.get("flops"), "config_hash": run["id"]}
        yield from _rows_of(run, {"experiment": name, **about})


def _rows_of(one: dict[str, Any], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, metric in one["metrics"].items():
        split, _, bare = name.rpartition("/")
        yield {**about, "metric": bare, "split": split, **_number(metric)}
    privacy = one["privacy"]
    for name, metric in (privacy or {}).get("metrics", {}).items():
        yield {**about, **_privacy_names(name, privacy), **_number(metric), **_privacy_numbers(metric, privacy)}


def _number(metric: dict[str, Any]) -> dict[str, Any]:
    low, high = metric["interval"] or (None, None)
    return {"value": metric["value"], "n": metric["n"], "ci_low": low, "ci_high": high}


def _privacy_names(name: str, privacy: dict[str, Any]) -> dict[str, Any]:
    """`loss/tpr@1e-3/lower` as the metric `tpr/lower` of the attack `loss` at 1e-3."""
    attack, rate, *ending = name.split("/")
    rate, _, fpr = rate.partition("@")
    named = {fpr_name(value): value for value in privacy["settings"]["fprs"]}
    metric = "/".join([rate, *ending])
    return {"metric": metric, "split": "forget", "attack": attack, "fpr_target": named.get(fpr) if fpr else None}


def _privacy_numbers(metric: dict[str, Any], privacy: dict[str, Any]) -> dict[str, Any]:
    sizes, details = privacy["settings"]["n"], metric["details"]
    status = details.get("status")
    resolved = None if status is None else str(status in ("resolved", "tied")).lower()
    return {
        "n_members": sizes["forget"],
        "n_nonmembers": sizes["nonmember"],
        "fpr_achieved": details.get("achieved_fpr"),
        "resolved": resolved,
    }
