# SPDX-License-Identifier: Apache-2.0
"""The model card: what was unlearned, how, and what that does not promise. Never the text that was unlearned."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data.role_table import ROLES
from ..data.tables import hub_commit
from ..files import write_text
from ..models.adapters import is_peft_model, trained_adapter
from ..stored.key import hash_table
from ..versions import versions
from .card_audit import attack_lines, audit_table, eval_results, read_audits, shown, verdict_line


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
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
VERSIONS = ("hf_unlearn", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")


@dataclass
class CardFacts:
    """What a card says beside what the trainer knows itself.

    Args:
        model_name (`str`, *optional*):
            Title; the repository's name, or the output folder's, if left out.
        dataset_name (`str`, *optional*):
            Hub id of the rows of all roles, where `datasets` says nothing.
        tags (`list[str]`):
            Added to `unlearning` and the method's name.
        datasets (`dict[str, dict]`):
            Role to `id`, `config`, `split` and `revision` of its rows, as far as they are known; rows that
            are not from the Hub have their folder's name, `local`, in place of the `id`.
        suite (`str`):
            What the audited sets are called.
        ref_model (`bool`):
            Whether the reference is another model than the one that entered the trainer.
        base_model (`str`, *optional*):
            Hub id of the model that entered the trainer.
        audits (`dict`):
            What [`~hf_unlearn.hub.card_audit.read_audits`] gave; dropped when training goes on.
        verdict (`str`, *optional*):
            What they say in one line: a run's report, which knows of attacks too, or the audits alone.
    """

    model_name: str | None = None
    dataset_name: str | None = None
    tags: list[str] = field(default_factory=list)
    datasets: dict[str, dict] = field(default_factory=dict)
    suite: str = "own rows"
    ref_model: bool = False
    base_model: str | None = None
    audits: dict = field(default_factory=dict)
    verdict: str | None = None
    # Role to a hash of its rows, taken once.
    fingerprints: dict[str, str] = field(default_factory=dict)

    def add(self, model_name=None, dataset_name=None, tags=None, audits=None, verdict=None) -> None:
        """Takes over what is given."""
        self.model_name = model_name or self.model_name
        self.dataset_name = dataset_name or self.dataset_name
        self.tags += [tags] if isinstance(tags, str) else list(tags or [])
        if audits is not None:
            self.audits = read_audits(audits)
            self.verdict = verdict or verdict_line(self.audits)


def write_model_card(trainer, folder: str | Path) -> None:
    """Writes `folder/README.md` for an [`UnlearnTrainer`]; `folder` exists."""
    write_text(Path(folder) / "README.md", str(render_model_card(trainer)))


def render_model_card(trainer):
    """The card of a run as it stands, from `args.model_card_template` or the one that comes with the package.

    Raises:
        `ValueError`: if the template cannot be filled in, or the result has no metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts, args = trainer.card_facts, trainer.args
    record = unlearning_record(trainer)
    name = facts.model_name or Path(trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).resolve()).name
    library = "peft" if is_peft_model(trainer.model) else "transformers"
    forget = record["datasets"]["forget"]
    task = trainer.family.pipeline_tag
    results = eval_results(facts.audits["unlearned"], forget, facts.suite, task) if facts.audits else None
    ids = [about["id"] for about in record["datasets"].values() if "id" in about]
    data = ModelCardData(
        base_model=record.get("base_model"),
        library_name=library,
        pipeline_tag=task,
        tags=[
            "unlearning",
            trainer.method,
            "hf_unlearn",
            *facts.tags,
            *(getattr(trainer.model, "model_tags", None) or []),
        ],
        datasets=list(dict.fromkeys(ids)) or None,
        model_name=name,
        eval_results=results,
        unlearning=record,
    )
    values = {
        "model_name": name,
        "repo_id": trainer.hub_model_id,
        "library": library,
        "classifier": trainer.family.architecture,
        "audit": audit_table(facts.audits) if facts.audits else None,
        "verdict": facts.verdict if facts.audits else None,
        "attacks": attack_lines(facts.audits) if facts.audits else [],
        "has_retrained": "retrained" in facts.audits,
        **{key: record.get(key) for key in RECORD},
    }
    try:
        card = ModelCard.from_template(data, template_path=str(args.model_card_template or TEMPLATE), **values)
    # Jinja raises whatever the expressions of a template raise.
    except Exception as error:
        raise ValueError(f"model_card_template={args.model_card_template!r} cannot be filled in: {error}") from error
    if card.data.get("unlearning") != record:
        raise ValueError(
            f"model_card_template={args.model_card_template!r} drops the metadata. It must begin with three lines: "
            "---, {{ card_data }}, ---."
        )
    return card


RECORD = (
    "method",
    "paper",
    "base_model",
    "base_model_revision",
    "rows",
    "datasets",
    "reference",
    "adapter",
    "settings",
    "steps",
    "stop_reason",
    "versions",
)


def unlearning_record(trainer) -> dict:
    """The `unlearning:` block: what a program needs to know of a run. Holds plain YAML values only."""
    model, facts = trainer.model, trainer.card_facts
    rows = trainer.given_rows
    known = versions()
    record = {
        "schema_version": 1,
        "method": trainer.method,
        "paper": trainer.paper,
        "base_model": facts.base_model,
        "base_model_revision": getattr(model.config, "_commit_hash", None),
        "rows": {role: len(dataset) for role, dataset in rows.items()},
        "datasets": {role: _origin(role, dataset, facts) for role, dataset in rows.items()},
        "reference": _reference(trainer),
        "ref_models": {name: trainer.references.models[name].name for name in trainer.references.weights} or None,
        "adapter": _adapter(model),
        "settings": card_settings(trainer.args),
        "steps": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "stop_reason": trainer.stop_reason,
        "audit": {
            model: {name: shown(result) for name, result in metrics.items()} for model, metrics in facts.audits.items()
        }
        or None,
        "versions": {name: known[name] for name in VERSIONS if name in known},
    }
    return {name: _plain(value) for name, value in record.items() if value is not None}


def card_settings(args) -> dict:
    """The settings that decide the result: the shared ones and the method's own fields."""
    from dataclasses import fields

    from ..addons.poison import PoisonArguments

    own = args.own_fields()
    if args.poison_prefix is not None:
        own += [f.name for f in fields(PoisonArguments)]
    values = {name: getattr(args, name) for name in (*SETTINGS, *own)}
    plain = {name: getattr(value, "value", value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}


def check_template(path: str | None) -> None:
    """Refuses a card template that is missing or broken, before anything is trained.

    Raises:
        `ValueError`: saying which.
    """
    from jinja2 import Environment, TemplateSyntaxError

    if path is None:
        return
    if not Path(path).is_file():
        raise ValueError(f"model_card_template={path!r}: there is no such file. docs/hub.md tells what it may hold.")
    try:
        Environment().parse(Path(path).read_text(encoding="utf-8"))
    except (TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"model_card_template={path!r} is no Jinja template: {error}") from error


def hub_id(model) -> str | None:
    """Where a model came from, if that is the Hub; a local path is nobody's business."""
    name = model.config._name_or_path
    return name if name and name.count("/") == 1 and not Path(name).exists() else None


def _origin(role: str, rows, facts: CardFacts) -> dict:
    """Where a role's rows came from, and how many there are."""
    if facts.datasets:
        # What is not known is not from where others are.
        found = dict(facts.datasets.get(role) or facts.datasets.get(ROLES[role].made_from) or {})
    else:
        found = {} if facts.dataset_name is None else {"id": facts.dataset_name}
    revision = hub_commit(rows)
    if revision is not None and "local" not in found:
        found = {"config": rows.info.config_name, "split": str(rows.split), "revision": revision, **found}
    if "id" not in found:
        if role not in facts.fingerprints:
            facts.fingerprints[role] = hash_table(rows)[:16]
        found["fingerprint"] = facts.fingerprints[role]
    return {**{key: value for key, value in found.items() if value is not None}, "rows": len(rows)}


def _reference(trainer) -> dict | None:
    if trainer.reference is None:
        return None
    who = "a model given as ref_model" if trainer.card_facts.ref_model else "the model as it entered the trainer"
    asked = trainer.reference_roles_of(trainer.args)
    roles = [role for role in trainer.train_dataset.roles if role in asked]
    return {"model": who, "roles": roles, "kept": trainer.reference.name}


def _adapter(model) -> dict | None:
    if not is_peft_model(model):
        return None
    config = model.peft_config[trained_adapter(model)].to_dict()
    return {name: config[name] for name in ADAPTER if config.get(name) is not None}


def _plain(value):
    """`value` as YAML holds it."""
    value = getattr(value, "value", value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
