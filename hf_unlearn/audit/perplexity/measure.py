# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a causal language model on texts, with an interval over the choice of rows."""

import math
import time
from collections.abc import Sequence

from ...data.benchmarks import resolve_model
from ...data.formats import dataset_type, encode_dataset
from ...data.sources import load_rows
from ...models.loading import config_of
from ...places import check_folder
from ..base import AuditKind, AuditResult, Context, Prepared
from ..checkpoints import check_fits, check_is_another, check_models
from ..generation import pad_token_id
from ..result import MetricResult
from ..scoring import score_rows
from ..sets import rows_digest, some_rows
from .arguments import PerplexityArguments


# What `exp` of it still is a number.
LARGEST = math.log(1e300)


class PerplexityAudit(AuditKind):
    """Perplexity on general text."""

    name, arguments = "perplexity", PerplexityArguments

    def prepare(self, args: PerplexityArguments, qa) -> Prepared:
        check_folder("output_dir", args.output_dir)
        tokenizer = check_models(args)
        models = [(resolve_model(args.model_name_or_path), args.model_revision)]
        if args.retrained_model_name_or_path is not None:
            models.append((resolve_model(args.retrained_model_name_or_path), None))
            check_is_another(models[1][0], *models[0])
        for path, revision in models:
            check_fits(path, "questions", args.trust_remote_code, revision)
        where = args.dataset_name, args.dataset_config, args.dataset_split, tokenizer, args.max_length
        rows = load_rows(*where)
        if dataset_type(rows.column_names) == "text":
            rows = load_rows(*where, chunk_text=True)
        rows = encode_dataset(rows, tokenizer, args.max_length, "general text")
        rows = some_rows(rows.select_columns(["input_ids", "labels"]).to_list(), args.max_items, args.seed)
        for path, revision in models:
            _check_room(rows, path, args.trust_remote_code, revision)
        return Prepared(tokenizer, {"text": rows})

    def measure(self, model, args: PerplexityArguments, prepared: Prepared, context: Context) -> AuditResult:
        start, rows = time.perf_counter(), prepared.rows["text"]
        pad = pad_token_id(prepared.tokenizer)
        how = {"batch_size": args.batch_size, "progress": context.progress, "desc": "Perplexity"}
        scores = score_rows(model, rows, pad_token_id=pad, **how)
        metrics = perplexity([score.logps.sum(dtype="float64") for score in scores], [score.n for score in scores])
        settings = {"rows": rows_digest(rows), "max_length": args.max_length}
        return AuditResult(metrics, settings, {"seconds": round(time.perf_counter() - start, 2)})


def _check_room(rows: Sequence[dict], model: str, trust_remote_code: bool, revision: str | None) -> None:
    """Refuses rows longer than a model was made for: it fails on them, or predicts them badly for their length."""
    config = config_of(model, trust_remote_code, revision)
    room = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(row["input_ids"]) for row in rows)
    if room and 0 < room < longest:
        raise ValueError(
            f"A row has {longest} tokens, and {model!r} reads at most {room} (`max_position_embeddings` of its "
            f"config). Give `max_length` of at most {room}."
        )


def perplexity(logps: Sequence[float], tokens: Sequence[int]) -> dict[str, MetricResult]:
    """`exp(m)`, where `m` is the mean negative log-probability a token, over all tokens.

    `m` is a ratio of two sums over rows, `sum l_i / sum t_i`; its 95% interval is that of the delta method with rows
    drawn independently, `m ± t sqrt(k / (k - 1) sum (l_i - m t_i)²) / sum t_i`, and the perplexity's its exponential.

    Args:
        logps (`Sequence[float]` `[k]`):
            Natural log-probability of each row, `-l_i`; a row for which it is not finite is undefined.
        tokens (`Sequence[int]` `[k]`):
            Its scored tokens, `t_i`; a row without any is undefined.

    Returns:
        `dict`: `perplexity` and `nll`, which is `m`, in nats a token; `n` counts rows, `tokens` stands in `details`.
    """
    from scipy.stats import t

    rows = [(-logp, n) if n and math.isfinite(logp) else None for logp, n in zip(logps, tokens, strict=True)]
    losses, counts = zip(*(row for row in rows if row is not None), strict=True) if any(rows) else ((), ())
    k, total = len(losses), sum(counts)
    mean = math.fsum(losses) / total if k else None
    interval = None
    if k > 1:
        squares = ((loss - mean * n) ** 2 for loss, n in zip(losses, counts, strict=True))
        half = float(t.ppf(0.975, k - 1)) * math.sqrt(k / (k - 1) * math.fsum(squares)) / total
        # Rows that are all alike say nothing of those that were not drawn.
        interval = (max(0.0, mean - half), mean + half) if half > 0 else None
    per_item = [None if row is None else row[0] / row[1] for row in rows]
    about = {"undefined": len(rows) - k, "details": {"tokens": total}}
    method = None if interval is None else "delta method over rows"
    nll = MetricResult("nll", mean, k, "lower", per_item, interval=interval, interval_method=method, **about)
    if mean is None or mean > LARGEST:
        return {"perplexity": MetricResult("perplexity", None, k, "lower", **about), "nll": nll}
    if interval is not None and interval[1] > LARGEST:
        interval = method = None
    ends = None if interval is None else tuple(map(math.exp, interval))
    found = MetricResult("perplexity", math.exp(mean), k, "lower", interval=ends, interval_method=method, **about)
    return {"perplexity": found, "nll": nll}
