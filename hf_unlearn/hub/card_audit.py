# SPDX-License-Identifier: Apache-2.0
"""Audits as a model card shows them: a table with intervals, and results that the Hub reads. Never an answer."""

# What an audit can be of, in the order of the card's columns.
COLUMNS = {"target": "before", "unlearned": "this model", "retrained": "never saw the forget rows"}
KEPT = ("value", "n", "undefined", "interval", "interval_method", "direction", "variant")


def read_audits(audits: dict) -> dict[str, dict[str, dict]]:
    """The metrics of audits, without items and answers.

    Args:
        audits (`dict[str, Audit | dict | str | Path]`):
            `unlearned`, and where there are, `target` and `retrained`: audits, their `to_dict()`, or the files they
            were saved to.

    Returns:
        `dict`: `target`, `unlearned`, `retrained` -> metric -> value, n, interval, direction, variant, details.

    Raises:
        `ValueError`: for other names, or without `unlearned`.
    """
    from ..audit.store import as_audit

    if "unlearned" not in audits or set(audits) - set(COLUMNS):
        raise ValueError(
            f"audits of {', '.join(map(repr, audits)) or 'nothing'}; a card needs 'unlearned' and takes 'target' (the "
            "model before) and 'retrained' (a model that never saw the forget rows)."
        )
    read = {}
    for name in COLUMNS:
        if name in audits:
            metrics = as_audit(audits[name]).metrics
            kept = (*KEPT, "details")
            read[name] = {metric: {k: result.to_dict()[k] for k in kept} for metric, result in metrics.items()}
    return read


def verdict_line(audits: dict[str, dict[str, dict]]) -> str:
    """What all metrics together say of this model, as its report says it.

    Args:
        audits (`dict`): of [`read_audits`].
    """
    from ..audit.registry import AUDITS
    from ..report.sections import AUDITS_KEY
    from ..report.verdict import verdicts

    models = []
    for name, metrics in audits.items():
        own = {metric: result for metric, result in metrics.items() if metric.split("/")[0] not in AUDITS}
        model = {"name": name, "kind": name, "metrics": own, AUDITS_KEY: {}}
        for metric in metrics.keys() - own.keys():
            kind, _, rest = metric.partition("/")
            model[AUDITS_KEY].setdefault(kind, {"metrics": {}})["metrics"][rest] = metrics[metric]
        models.append(model)
    (found,) = verdicts({"models": models})
    return found.line


def attack_lines(audits: dict[str, dict[str, dict]]) -> list[str]:
    """One line an audit of robustness of this model: what it says, how much is left, and what was tried.

    Args:
        audits (`dict`): of [`read_audits`].
    """
    from ..report.findings import WORST
    from ..report.naming import format_metric

    lines = []
    for name, result in audits["unlearned"].items():
        kind, _, rest = name.partition("/")
        if rest != WORST:
            continue
        details = result["details"]
        which = str(details.get("which", "")).removesuffix("/remaining")
        said = details.get("verdict", "unresolved")
        left = f"at worst {format_metric(WORST, result)} of what was known is left ({which})"
        said += f", {left}" if result["value"] is not None else f": {details.get('reason', 'undefined')}"
        tried = [_counted(count, what) for what, count in details.get("budget", {}).items()]
        lines.append(f"`{kind}`: {said}; {', '.join(tried)}." if tried else f"`{kind}`: {said}.")
    return lines


def _counted(count: float, what: str) -> str:
    return f"{count:,g} {what.removesuffix('s') if count == 1 else what}"


def shown(result: dict) -> dict:
    """A result as metadata holds it: what says nothing is left out, but for a value that is undefined."""
    return {key: result[key] for key in KEPT if key in ("value", "n") or result[key] not in (None, 0)}


def audit_table(audits: dict[str, dict[str, dict]]) -> dict[str, list]:
    """The card's table: `columns`, and `rows` of label, n, a cell a column and direction."""
    from ..report.naming import DIRECTION_WORDS, format_metric, full_label, metric_in, metric_names

    models = [{"metrics": metrics} for metrics in audits.values()]
    rows = []
    for name in metric_names({"models": models}):
        found = [metric for model in models if (metric := metric_in(model, name)) is not None]
        counts = dict.fromkeys(str(metric["n"]) for metric in found)
        cells = [format_metric(name, metric_in(model, name)) for model in models]
        rows.append((full_label(name), ", ".join(counts), cells, DIRECTION_WORDS[found[0]["direction"]]))
    return {"columns": [COLUMNS[name] for name in audits], "rows": rows}


def eval_results(metrics: dict[str, dict], dataset: dict, suite: str, task: str = "text-generation") -> list:
    """The results of this model as the Hub's `model-index` holds them; undefined ones are left out.

    Args:
        metrics (`dict[str, dict]`): metric -> result.
        dataset (`dict`): `id`, `config`, `split` and `revision` of the forget rows, as far as known.
        suite (`str`): what the audited sets are called.
        task (`str`): what the Hub calls what the model does.
    """
    from huggingface_hub import EvalResult

    from ..report.naming import full_label

    return [
        EvalResult(
            task_type=task,
            # The sets of an audit are several; which one a result is of stands in the metric.
            dataset_type=dataset.get("id", "local-rows" if "local" in dataset else suite.replace(" ", "-")),
            dataset_name=f"{suite}, local rows" if "local" in dataset else suite,
            dataset_config=dataset.get("config"),
            dataset_revision=dataset.get("revision"),
            metric_type=name,
            metric_name=full_label(name),
            metric_value=result["value"],
            metric_args={key: value for key, value in shown(result).items() if key != "value"},
        )
        for name, result in metrics.items()
        if result["value"] is not None
    ]
