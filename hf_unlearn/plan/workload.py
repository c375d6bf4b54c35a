# SPDX-License-Identifier: Apache-2.0
"""Everything of a recipe that decides how much memory it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..addons.addon import AddOn, overrides
from ..data.role_table import FORGET, POISONED, RETAIN, ROLES, tied_to
from ..forward.needs import Needs
from ..methods.fisher.config import FisherConfig
from ..methods.layer_states import LayerStatesConfig
from ..methods.scrub.config import ScrubConfig
from .engines import Engine
from .shapes import Shape, find_config, shape_of


# Rows of TOFU's splits: forget and retain.
TOFU_ROWS = {"forget01": (40, 3960), "forget05": (200, 3800), "forget10": (400, 3600)}
TOKENS_A_ROW = 60


@dataclass(frozen=True)
class Workload:
    """One way to run a recipe.

    Args:
        shape ([`Shape`]): of the model.
        engine ([`Engine`]): how it is spread.
        dtype (`str`): of the weights as loaded, `float32` or `bfloat16`.
        mixed (`bool`): bfloat16 arithmetic (`bf16: true`).
        quantized (`str`, *optional*): `4bit` or `8bit` base weights.
        optimizer, optimizer_args (`str`): `optim` and `optim_args`.
        checkpointing (`bool`): activation checkpointing.
        rows (`int`): rows of each role, a GPU and forward.
        turns (`bool`): a forward has rows of one role, not of all.
        row_length (`int`): tokens of the longest row.
        accumulation (`int`): forwards a step.
        needs (`Needs`): role to what the loss needs of it.
        reference (`str`, *optional*): `live`, `cache` or `adapter`; `None` where no role needs one.
        reference_roles (`tuple[str, ...]`): roles that do.
        fused (`bool`): losses from hidden states; otherwise over logits.
        adapter (`bool`): PEFT.
        eager (`bool`): attention that keeps its scores.
        repeats (`bool`): keys and values are kept once for every query head, as transformers does with padded rows.
        dataset_rows (`Mapping[str, int]`, *optional*): role to all its rows, where known.
        tokens_a_row (`float`): predicted tokens of a row, on average.
        addons (`tuple[AddOn, ...]`): the run's.
        others (`bool`): whether the loss has terms beside those that forget.
        whole ([`Shape`], *optional*): of the whole model, where `shape` ends at a layer.
    """

    shape: Shape
    engine: Engine
    dtype: str = "float32"
    mixed: bool = False
    quantized: str | None = None
    optimizer: str = "adamw_torch_fused"
    optimizer_args: str | None = None
    checkpointing: bool = False
    rows: int = 4
    turns: bool = False
    row_length: int = 512
    accumulation: int = 1
    needs: Needs = field(default_factory=dict)
    reference: str | None = None
    reference_roles: tuple[str, ...] = ()
    fused: bool = True
    adapter: bool = False
    eager: bool = False
    repeats: bool = True
    dataset_rows: Mapping[str, int] | None = None
    tokens_a_row: float = TOKENS_A_ROW
    addons: tuple[AddOn, ...] = ()
    others: bool = True
    whole: Shape | None = None

    @property
    def tokens(self) -> int:
        """A GPU and forward, padding included."""
        read = [role for role, need in self.needs.items() if need.stands_for is None]
        return self.rows * (1 if self.turns else len(read)) * self.row_length


@dataclass
class Planned:
    """A recipe's workload, and the same with other things trained.

    Args:
        workload ([`Workload`]): the recipe's.
        source (`str`): where the model's shape comes from.
        with_lora (`Shape`, *optional*): the shape with LoRA of rank 16 on all linear layers.
    """

    workload: Workload
    source: str
    with_lora: Shape | None


def read_workload(recipe, engine: Engine, row_length: int | None = None, tokens_a_row: float | None = None) -> Planned:
    """What a parsed recipe is going to do.

    Args:
        recipe ([`~hf_unlearn.runs.recipe.Recipe`]): the recipe.
        engine ([`Engine`]): how it is spread.
        row_length (`int`, *optional*): longest row in tokens; `max_length` if left out.
        tokens_a_row (`float`, *optional*): predicted tokens of a row on average, for the cache on disk.
    """
    from peft import LoraConfig
    from trl import get_peft_config

    args, model = recipe.training, recipe.model
    peft_config = get_peft_config(model)
    config, source = find_config(model.model_name_or_path, args.trust_remote_code, model.model_revision)
    shape, whole = _shape(config, args, peft_config)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = recipe.trainer_class()
    roles, addons = trainer.trained_roles_of(args), tuple(trainer.addons_of(args))
    needs = {role: trainer.needs_of(args)[role] for role in roles}
    # Further rows of a pair that belong to one row take what the first does.
    further = range(2, 1 + getattr(args, "num_alternates", 1))
    needs |= {f"{role} {number}": needs[role] for role in trainer.together for number in further}
    reference_roles = tuple(role for role in roles if role in trainer.reference_roles_of(args))
    fused = shape.fusible if args.fused_losses is None else args.fused_losses
    row_length = row_length or args.max_length
    if row_length is None:
        raise ValueError(
            "`max_length` is null, so rows may be of any length. Say `--row_length`, the longest in tokens."
        )
    workload = Workload(
        shape=shape,
        engine=engine,
        dtype=_dtype(args, config),
        mixed=bool(args.bf16),
        quantized="4bit" if model.load_in_4bit else "8bit" if model.load_in_8bit else None,
        optimizer=getattr(args.optim, "value", args.optim),
        optimizer_args=args.optim_args,
        checkpointing=bool(args.activation_checkpointing),
        # Fisher forgetting goes row by row, and holds the graphs of all draws of one.
        rows=args.fisher_samples if isinstance(args, FisherConfig) else args.per_device_train_batch_size,
        turns=isinstance(args, ScrubConfig),
        row_length=row_length,
        accumulation=args.gradient_accumulation_steps,
        needs=needs,
        reference=_reference(args.reference, peft_config is not None, fused, needs, reference_roles),
        reference_roles=reference_roles,
        fused=fused,
        adapter=peft_config is not None,
        eager=model.attn_implementation == "eager",
        repeats=not (model.attn_implementation or "").startswith(("flash", "kernels")),
        dataset_rows=_dataset_rows(recipe.run, roles, args),
        tokens_a_row=tokens_a_row or TOKENS_A_ROW,
        addons=addons,
        others=not all(map(trainer.forgets, roles)) or any(overrides(addon, "loss") for addon in addons),
        whole=whole,
    )
    with_lora = None
    if peft_config is None and not args.trainable_modules:
        with_lora = shape_of(config, None, lora, args.trust_remote_code)
    return Planned(workload, source, with_lora)


def _shape(config, args, peft_config) -> tuple[Shape, Shape]:
    """The model's; of methods that stop at a layer, what is there up to it, unless some rows go on to the head. And
    the whole model's."""
    if not isinstance(args, LayerStatesConfig):
        shape = shape_of(
            config, args.trainable_modules, peft_config, args.trust_remote_code, untie=args.untie_embeddings
        )
        return shape, shape
    patterns = None if peft_config else args.trained_patterns
    shape = shape_of(config, args.trainable_modules or patterns, peft_config, args.trust_remote_code)
    if args.ends_at is None:
        return shape, shape
    above = shape.layers - 1 - args.ends_at
    return replace(shape, layers=shape.layers - above, trained_layers=shape.trained_layers - above), shape


def _dtype(args, config) -> str:
    dtype = (args.model_init_kwargs or {}).get("dtype", "float32")
    if dtype == "auto":
        dtype = config.dtype or "float32"
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r}; `plan` knows 'float32', 'bfloat16' and 'float16'.")
    return dtype


def _reference(kind: str, adapter: bool, fused: bool, needs: Needs, roles) -> str | None:
    """The choice of [`~hf_unlearn.reference.build_reference`]."""
    if not roles:
        return None
    if adapter and kind in ("auto", "adapter"):
        return "adapter"
    cacheable = fused or not any(needs[role].kept == ("hidden",) for role in roles)
    return "cache" if cacheable and kind != "live" else "live"


def _dataset_rows(run, roles: tuple[str, ...], args) -> dict[str, int] | None:
    """Rows of each role, where they are known without reading data."""
    given = [role for role in roles if ROLES[role].made_from is None]
    found, files = None, {role: getattr(run, f"{role}_dataset") for role in given}
    if run.benchmark == "tofu":
        counts = TOFU_ROWS.get(run.forget_split or "forget10")
        found = None if counts is None else dict(zip((FORGET, RETAIN), counts, strict=True))
    elif all(name and name.endswith(".jsonl") and Path(name).is_file() for name in files.values()):
        found = {role: _lines(name) for role, name in files.items()}
    if found is not None:
        count = getattr(args, "num_alternates", 1)
        found |= {role: count * found[tied_to(role)] for role in roles if tied_to(role)}
        found |= {role: int(found[FORGET] * args.poison_ratio) for role in roles if role == POISONED}
    return found


def _lines(name: str) -> int:
    with open(name, encoding="utf-8") as file:
        return sum(1 for _ in file)
