# SPDX-License-Identifier: Apache-2.0
"""The model card: what was unlearned, how, and what that does not promise. Never the text that was unlearned."""

from pathlib import Path

from . import __version__
from .modeling import is_peft_model


SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "lr_scheduler_type",
    "seed",
    "bf16",
    "max_length",
    "epoch_by",
    "forget_weight",
    "retain_loss",
    "retain_weight",
    "trainable_modules",
)


def write_model_card(trainer, folder: str, model_name=None, dataset_name=None, tags=None) -> None:
    """Writes `folder/README.md` for an [`UnlearnTrainer`].

    Args:
        trainer ([`UnlearnTrainer`]):
            The run.
        folder (`str`):
            An existing folder.
        model_name, dataset_name (`str`, *optional*):
            Shown; the folder's name and nothing by default.
        tags (`list[str]` or `str`, *optional*):
            Added to `unlearning` and the method's name.
    """
    from huggingface_hub import ModelCard, ModelCardData

    tags = [tags] if isinstance(tags, str) else list(tags or [])
    base_model = _hub_id(trainer.model)
    counts = {role: len(rows) for role, rows in trainer.train_dataset.roles.items()}
    settings = card_settings(trainer.args)
    method = {"method": trainer.method, "hf_unlearn": __version__, "rows": counts, **settings}
    data = ModelCardData(
        base_model=base_model,
        library_name="peft" if is_peft_model(trainer.model) else "transformers",
        tags=["unlearning", trainer.method, "hf_unlearn", *tags],
        datasets=[dataset_name] if dataset_name else None,
        unlearning=method,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).parent / "templates" / "model_card.md"),
        model_name=model_name or Path(folder).resolve().name,
        dataset_name=dataset_name,
        method=trainer.method,
        paper=trainer.paper,
        version=__version__,
        counts=counts,
        settings=settings,
        stop_reason=trainer.stop_reason,
    )
    card.save(Path(folder) / "README.md")


def card_settings(args) -> dict:
    """The settings that decide the result: the shared ones and the method's own fields."""
    from dataclasses import fields

    from .config import UnlearnConfig

    shared = {f.name for f in fields(UnlearnConfig)}
    own = [f.name for f in fields(args) if f.name not in shared]
    values = {name: getattr(args, name) for name in (*SETTINGS, *own)}
    plain = {name: getattr(value, "value", value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _hub_id(model) -> str | None:
    name = model.config._name_or_path
    return name if name and name.count("/") == 1 and not Path(name).exists() else None
