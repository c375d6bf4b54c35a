# SPDX-License-Identifier: Apache-2.0
"""Everything about a run that can be refused is refused here, before any model is loaded or any process started."""

from dataclasses import dataclass
from pathlib import Path

from ..audit.checkpoints import check_checkpoint_path, check_embeddings, check_is_another, tokenizer_of
from ..data.benchmarks import resolve_model
from ..data.sets import Sets, load_sets
from ..families.choose import family_of
from ..forward.needs import names_of
from ..modeling import check_adapter_fits, check_model_path, config_of
from ..places import check_folder
from ..reference.named import given_models
from ..training.best import check_best, loss_directions
from .backdoor import check_wanted
from .output import check_output, resume_checkpoint
from .recipe import Recipe
from .suite_audits import check_audited


@dataclass
class Prepared:
    """What a run needs besides its models.

    Args:
        model (`str`):
            Folder or Hub id of the model to unlearn from.
        retrained (`str`, *optional*):
            Folder or Hub id of the retrained model.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        sets ([`Sets`]):
            The rows.
        roles (`dict[str, datasets.Dataset]`):
            Role to encoded rows.
        resume (`str`, *optional*):
            Checkpoint folder to go on from.
    """

    model: str
    retrained: str | None
    tokenizer: object
    sets: Sets
    roles: dict
    resume: str | None


def prepare(recipe: Recipe) -> Prepared:
    """Finds and checks everything that a run needs.

    Raises:
        `ValueError`: for anything that is missing or cannot work.
    """
    from trl import get_peft_config

    run, training = recipe.run, recipe.training
    _check_settings(recipe)
    check_folder("output_dir", training.output_dir)
    check_folder("reference_cache_dir", training.reference_cache_dir)
    check_output(recipe)
    resume = resume_checkpoint(recipe)
    model, retrained = resolve_model(recipe.model.model_name_or_path), run.retrained_model_name_or_path
    check_model_path(model, training.model_init_kwargs)
    if retrained is not None:
        retrained = resolve_model(retrained)
        check_checkpoint_path(retrained)
        check_is_another(retrained, model, recipe.model.model_revision)
    if training.unlearned_model_name_or_path is not None:
        check_checkpoint_path(training.unlearned_model_name_or_path)
    revision = recipe.model.model_revision
    if run.tokenizer_name_or_path is not None:
        revision = None
    tokenizer = tokenizer_of(run.tokenizer_name_or_path or model, training.trust_remote_code, revision)
    check_embeddings(model, tokenizer, training.trust_remote_code, recipe.model.model_revision)
    if retrained is not None:
        check_embeddings(retrained, tokenizer, training.trust_remote_code)
    sets = load_sets(run, recipe.qa, tokenizer, training.max_length, audit=run.audit, alternates=training)
    if sets.forget is None:
        raise ValueError(f"benchmark={run.benchmark!r} has several corpora to train on. Name one as `forget_split`.")
    if run.audit:
        check_audited(sets, run.audit_max_items)
    family = family_of(model, training.likelihood, training.trust_remote_code, recipe.model.model_revision)
    family.check_method(recipe.trainer_class())
    needed = recipe.trainer_class().needs_of(training)
    given_models(names_of(needed), None, recipe.trainer_class().ref_models_of(training))
    roles = family.encode_roles(sets.forget, sets.retain, tokenizer, training, needed=needed)
    if training.eval_strategy != "no":
        # At evaluations an audit may bring metrics of its own, of which it tells before the first step.
        evaluated = [role for role, rows in (("forget", sets.forget), ("retain", sets.retain)) if rows is not None]
        if getattr(training, "rewind", False) and "holdout" in sets.audited:
            evaluated.append("holdout")
        check_best(training, loss_directions(evaluated), others=run.audit_during_training)
    # The trainer finds the same, but after other models were loaded and audited.
    recipe.trainer_class().checked_addons(training, adapter=get_peft_config(recipe.model) is not None)
    config = config_of(model, training.trust_remote_code, recipe.model.model_revision)
    recipe.trainer_class().check_early(training, roles, tokenizer, config)
    check_adapter_fits(model, get_peft_config(recipe.model), training.trust_remote_code, recipe.model.model_revision)
    return Prepared(model, retrained, tokenizer, sets, roles, resume)


def run_name(recipe: Recipe) -> str:
    """What a run is called in reports."""
    return recipe.training.run_name or Path(recipe.training.output_dir).resolve().name


def _check_settings(recipe: Recipe) -> None:
    if recipe.run.audit and run_name(recipe) in ("target", "retrained"):
        raise ValueError(f"A report has a model called {run_name(recipe)!r} already. Give another `run_name`.")
    if recipe.run.audit_during_training and recipe.training.eval_strategy == "no":
        raise ValueError("audit_during_training audits at evaluations, and there are none. Give `eval_strategy`.")
    check_wanted(recipe)
