# SPDX-License-Identifier: Apache-2.0
"""What makes a checkpoint the best: a metric that evaluations report, and which way it is better.

transformers takes every metric whose name ends in `loss` for one that should be small. Of forget rows it should not.
"""

from collections.abc import Iterable, Mapping

from transformers import EarlyStoppingCallback, TrainerCallback


HIGHER, LOWER = "higher", "lower"
# What evaluations say of themselves.
_OF_THE_RUN = ("_runtime", "_samples_per_second", "_steps_per_second", "_time")


def metric_name(args) -> str | None:
    """The name by which evaluations report `metric_for_best_model`."""
    asked = args.metric_for_best_model
    return asked if asked is None or asked.startswith("eval_") else f"eval_{asked}"


def loss_directions(sets: Iterable[str] | None) -> dict[str, str]:
    """The metrics that an evaluation reports, and which way each is better.

    Args:
        sets (`Iterable[str]`, *optional*): names of the evaluated sets; `None` for one set without a name.
    """
    if sets is None:
        return {"eval_loss": LOWER}
    return {f"eval_{name}_loss": HIGHER if name.startswith("forget") else LOWER for name in sets}


def check_best(args, known: Mapping[str, str], others: bool = False, callbacks: Iterable = ()) -> None:
    """Sets `greater_is_better` where it was left out.

    Args:
        args ([`UnlearnConfig`]): `metric_for_best_model` and `greater_is_better` are read, the latter is set.
        known (`Mapping[str, str]`): metrics that evaluations report, and their directions (see [`MetricResult`]).
        others (`bool`): there may be metrics that are not known before the first evaluation.
        callbacks (`Iterable`): the run's; early stopping reads the metric too.

    Raises:
        `ValueError`: for a metric that no evaluation will report, that has no direction, or the wrong one.
    """
    stops = any(issubclass(_kind(one), EarlyStoppingCallback) for one in callbacks)
    asked = args.metric_for_best_model
    if stops and asked is None:
        raise ValueError(
            f"EarlyStoppingCallback reads metric_for_best_model, and there is none. Give one of: {', '.join(known)}."
        )
    if asked is None or not (stops or _chooses(args)):
        return
    if args.eval_strategy == "no":
        raise ValueError(
            f"metric_for_best_model={asked!r} is looked at in evaluations, and eval_strategy='no'. Give eval_strategy "
            "'steps' or 'epoch'."
        )
    name = metric_name(args)
    direction = known.get(name)
    if direction is None:
        if others and not name.endswith(_OF_THE_RUN):
            return
        told = ", ".join(name for name, way in known.items() if way in (HIGHER, LOWER)) or "nothing: no eval_dataset"
        raise ValueError(f"metric_for_best_model={asked!r}: no evaluation reports that. It reports {told}.")
    if direction not in (HIGHER, LOWER):
        usable = ", ".join(name for name, way in known.items() if way in (HIGHER, LOWER))
        raise ValueError(
            f"metric_for_best_model={asked!r} has no direction: it is best where the retrained model's is, neither "
            f"high nor low. Take one of: {usable}."
        )
    greater = direction == HIGHER
    if args.asked_greater_is_better is None:
        args.greater_is_better = greater
    elif args.asked_greater_is_better != greater:
        raise ValueError(
            f"greater_is_better={args.asked_greater_is_better} with metric_for_best_model={asked!r} would keep the "
            f"worst checkpoint: {direction} is better there. Leave greater_is_better out."
        )


def check_early(args, eval_dataset, compute_metrics, callbacks) -> None:
    """As [`check_best`], before there is a trainer: refuses what no callback that is added later can mend."""
    sets = list(eval_dataset) if isinstance(eval_dataset, dict) else None
    known = {} if eval_dataset is None else loss_directions(sets)
    later = "/" in (args.metric_for_best_model or "") or compute_metrics is not None
    check_best(args, known, others=later or any(map(_may_report, callbacks)), callbacks=callbacks)


def _kind(callback) -> type:
    """A callback's class; Trainer takes classes too."""
    return callback if isinstance(callback, type) else type(callback)


def _may_report(callback) -> bool:
    """Whether a callback may add metrics to an evaluation that nobody knows of before: one of the user's."""
    kind = _kind(callback)
    known = kind.__module__.startswith(("transformers.", "trl.", "hf_unlearn."))
    return not known and kind.on_evaluate is not TrainerCallback.on_evaluate


def reports_others(trainer) -> bool:
    """Whether evaluations of a trainer may report metrics that nobody knows before: a function or callback of the
    user's, or an audit that has not been made yet."""
    audits = [one for one in trainer.callback_handler.callbacks if getattr(one, "at_evaluation", False)]
    foreign = any(map(_may_report, trainer.callback_handler.callbacks))
    return trainer.compute_metrics is not None or foreign or any(one.reported is None for one in audits)


def known_metrics(trainer) -> dict[str, str]:
    """The metrics that evaluations of a trainer report, as far as they are known, and their directions."""
    sets = trainer.eval_dataset
    known = {} if sets is None else loss_directions(sets if isinstance(sets, dict) else None)
    for one in trainer.callback_handler.callbacks:
        known |= getattr(one, "reported", None) or {}
    return known


def _chooses(args) -> bool:
    """Whether anything of Trainer's reads the metric."""
    return (
        args.load_best_model_at_end
        or args.save_strategy == "best"
        or args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        # Recorded in every case, and a KeyError where it is missing.
        or args.eval_strategy != "no"
    )
