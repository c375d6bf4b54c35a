# SPDX-License-Identifier: Apache-2.0
"""What was given and has no effect in this run is told once, when it is known what the run does.

A config says in `USED_WITH` what its fields are for: names in `CONDITIONS`. What cannot work at all is refused where
it is checked.
"""

import logging
from dataclasses import fields

from ..data.alternates import OF_SAMPLES, SAMPLED, source_of
from ..data.role_table import ROLES
from ..families.base import CLASSIFIER


logger = logging.getLogger(__name__)

# What a setting is for, in words -> whether this run has it.
CONDITIONS = {
    "a retain term": lambda trainer: any(ROLES[role].kept for role in trainer.train_dataset.roles),
    "a reference": lambda trainer: bool(trainer.references.models),
    "a cached reference": lambda trainer: any(ref.name == "cache" for ref in trainer.references.models.values()),
    "a classifier": lambda trainer: trainer.family.name == CLASSIFIER,
    "eval_strategy": lambda trainer: trainer.args.eval_strategy != "no",
    "eval_strategy='steps'": lambda trainer: trainer.args.eval_strategy == "steps",
    "save_strategy='steps'": lambda trainer: trainer.args.save_strategy == "steps",
    "save_strategy": lambda trainer: trainer.args.save_strategy != "no",
    "metric_for_best_model": lambda trainer: trainer.args.metric_for_best_model is not None,
    OF_SAMPLES: lambda trainer: source_of(trainer.args) == SAMPLED,
    # Pairs have an order of their own.
    "other trainers": lambda trainer: False,
    "the config's optimizer": lambda trainer: not trainer.own_optimizer,
}
# Fields of `TrainingArguments`, which do not say it themselves.
INHERITED = {
    "eval_steps": "eval_strategy='steps'",
    "eval_delay": "eval_strategy",
    "metric_for_best_model": "eval_strategy",
    "greater_is_better": "metric_for_best_model",
    "save_steps": "save_strategy='steps'",
    "save_total_limit": "save_strategy",
    "save_only_model": "save_strategy",
    "optim": "the config's optimizer",
    "train_sampling_strategy": "other trainers",
    "weight_decay": "the config's optimizer",
}


def needed_by(config_class: type) -> dict[str, str]:
    """Field -> what it is for, of a config and the classes that it is made of."""
    needs = dict(INHERITED)
    for part in reversed(config_class.__mro__):
        needs |= vars(part).get("USED_WITH", {})
    return needs


def unused(trainer) -> list[str]:
    """What was given and has no effect, each with what it is for."""
    args, found = trainer.args, []
    needs = needed_by(type(args))
    for field in fields(args):
        condition = needs.get(field.name)
        if condition is None:
            continue
        value = getattr(args, field.name)
        if value != field.default and not CONDITIONS[condition](trainer):
            found.append(f"{field.name}={getattr(value, 'value', value)!r} (for {condition})")
    return found


def tell_unused(trainer, retain_rows: bool) -> None:
    """Warns of everything that was given and has no effect.

    Args:
        trainer ([`UnlearnTrainer`]): set up.
        retain_rows (`bool`): whether retain rows were given.
    """
    found = unused(trainer)
    if retain_rows and "retain" not in trainer.given_rows:
        found.insert(0, f"retain_dataset (retain_loss={trainer.args.retain_loss!r} trains on none of it)")
    if found:
        logger.warning("Given, and without effect in this run: %s.", ", ".join(found))
