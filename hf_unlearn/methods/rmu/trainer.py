# SPDX-License-Identifier: Apache-2.0
"""Representation misdirection for unlearning (RMU, https://huggingface.co/papers/2403.03218)."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_number, check_patterns
from ...data.role_table import FORGET
from ...families.base import CAUSAL_LM
from ...forward.layer import LayerForward, LayerRows
from ...forward.needs import REFERENCE, STATES, Need
from ...losses import rmu_loss
from ...modeling import evaluating, is_peft_model
from ...models.layer_choice import check_below, freeze_outside, parameters_by_name, parameters_by_position
from ...training.method_state import read_method_state, write_method_state
from ...training.trainer import UnlearnTrainer
from ..layer_states import LayerStatesConfig, check_layers, in_layers, tell_movement
from .movement import tell_lengths


# Beside a saved model; a folder, so that no push takes it along.
CONTROL = "rmu"


@dataclass
class RMUConfig(LayerStatesConfig):
    r"""Settings of [`RMUTrainer`]; defaults are the paper's for Zephyr-7B.

    `retain_weight` is \\( \alpha \\). Forget rows with a `topic` column have a control vector per topic, and may have
    coefficients per topic.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "Initial learning rate."})
    retain_weight: float = field(default=1200.0, metadata={"help": "Weight of the retain term, alpha."})
    layer_id: int = field(default=7, metadata={"help": "Decoder layer whose output is steered, counted from 0."})
    layer_ids: list[int] | None = field(
        default=None, metadata={"help": "Trained layers: `layer_id` and the two below by default."}
    )
    module_names: list[str] = field(
        default_factory=lambda: [r"\bdown_proj\b"],
        metadata={"help": "Regular expressions for the names of the trained parameters of these layers."},
    )
    param_ids: list[int] | None = field(
        default=None,
        metadata={
            "help": "Instead of `module_names`: positions in a layer's list of parameters, as in published code."
        },
    )
    steering_coeffs: list[float] = field(
        default_factory=lambda: [6.5], metadata={"help": "Length of the control vector: one, or one per topic."}
    )
    adaptive_scale: float | None = field(
        default=None,
        metadata={
            "help": "Adaptive RMU: in place of `steering_coeffs`, this multiple of the mean norm of the forget rows' "
            "activations in the first batch (published: 5)."
        },
    )
    alphas: list[float] | None = field(
        default=None, metadata={"help": "Weights of the topics' retain terms relative to `retain_weight`."}
    )
    kl_coeff: float = field(
        default=0.0,
        metadata={
            "help": "Weight of KL(reference || model), added to the distance of activations on retain and poisoned "
            "rows."
        },
    )

    def __post_init__(self):
        check_number("kl_coeff", self.kl_coeff, at_least=0)
        check_patterns("module_names", self.module_names)
        for name in ("steering_coeffs", "alphas"):
            for value in getattr(self, name) or []:
                check_number(name, value, at_least=0)
        if not self.steering_coeffs:
            raise ValueError("steering_coeffs is empty; give one coefficient, or one a topic.")
        if self.adaptive_scale is not None:
            check_number("adaptive_scale", self.adaptive_scale, above=0)
        super().__post_init__()
        if self.use_kl_poison and not self.kl_coeff:
            raise ValueError("use_kl_poison adds KL to RMU's poisoned rows with the weight kl_coeff, and kl_coeff=0.")

    @property
    def trained_layers(self) -> list[int]:
        """Layers whose parameters train."""
        lowest = max(self.layer_id - 2, 0)
        return list(range(lowest, self.layer_id + 1)) if self.layer_ids is None else self.layer_ids

    @property
    def ends_at(self) -> int | None:
        return None if self.kl_coeff else self.layer_id

    @property
    def trained_patterns(self) -> list[str]:
        names = self.module_names if self.param_ids is None else [""]
        return in_layers(self.trained_layers, names)


class RMUTrainer(UnlearnTrainer):
    r"""Steers one layer's activations on forget rows to a random direction and preserves them on the others:
    \\( \| h_\theta(x_f) - c\,u \|^2 + \alpha \| h_\theta(x_r) - h_{ref}(x_r) \|^2 \\), means over real tokens and
    dimensions (equations 1 and 2). \\( u \\) has entries uniform in [0, 1) and length 1; it is drawn from `seed`, the
    same on every process, and kept with checkpoints and the saved model (see [`read_control`]).

    The forward pass ends at the layer it reads, states below the first trained layer are cached on disk, and the
    reference's activations are computed once.
    """

    config_class = RMUConfig
    method = "rmu"
    families = (CAUSAL_LM,)
    paper = "2403.03218"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        topics = 1 + max(self.train_dataset.roles[FORGET]["topic"]) if self._has_topics() else 1
        coeffs = self._of_topics("steering_coeffs", topics)
        if self.args.adaptive_scale is not None:
            coeffs = [float("nan")] * topics
        self.alphas = self._of_topics("alphas", topics) if self.args.alphas else [1.0] * topics
        generator = torch.Generator().manual_seed(self.args.seed)
        width = self.model.config.get_text_config().hidden_size
        drawn = torch.rand((topics, width), generator=generator)
        self.control = drawn / drawn.norm(dim=-1, keepdim=True)
        self.coeffs = torch.tensor(coeffs)
        self._told = False

    # What the method says of itself

    @classmethod
    def needs_of(cls, args: RMUConfig):
        kept = Need(layer=True, kl=args.kl_coeff > 0, reference=(REFERENCE,))
        return {FORGET: STATES, **dict.fromkeys(args.kept_terms, kept)}

    def build_forward(self, model, args, needs, shape):
        # Rows that need no KL stop at the layer; they must not share a pass with rows that go on to the head.
        apart = args.kl_coeff and args.forward_passes == "auto"
        return LayerForward(args.layer_id, needs, "split" if apart else shape, whole=args.fused_losses is False)

    def check_architecture(self, args: RMUConfig, model: nn.Module) -> None:
        check_layers("layer_id", [args.layer_id], model, "RMU")
        check_layers("layer_ids", args.trained_layers, model, "RMU")
        for layer in args.trained_layers:
            if layer > args.layer_id:
                raise ValueError(
                    f"layer_ids={args.trained_layers}: layer {layer} is above layer_id={args.layer_id}, whose output "
                    "it cannot change. Name layers up to it."
                )

    def trainable_patterns(self, args: RMUConfig, model: nn.Module) -> list[str] | None:
        """The parameters to train, by full name; adapters are frozen outside of the trained layers."""
        if args.trainable_modules:
            check_below(model, args.trainable_modules, args.layer_id)
            return args.trainable_modules
        if is_peft_model(model):
            freeze_outside(model, args.trained_layers)
            return None
        return [f"^{re.escape(name)}$" for name in self._chosen(args, model)]

    @staticmethod
    def _chosen(args: RMUConfig, model: nn.Module) -> list[str]:
        if args.param_ids is None:
            return parameters_by_name(model, args.trained_layers, args.module_names)
        return parameters_by_position(model, args.trained_layers, args.param_ids)

    # The objective

    def forget_loss(self, rows: LayerRows) -> Tensor:
        topic = self._topic(rows)
        adapts = self.args.adaptive_scale is not None and bool(self.coeffs.isnan().any())
        states = self._as_they_are(rows) if adapts or not self._told else rows.states
        if adapts:
            self._set_coeffs(states, topic)
        if not self._told and self.args.process_index == 0:
            tell_lengths(states, self.coeffs, self.args.layer_id, self.args.adaptive_scale is not None)
        self._told = True
        self.control, self.coeffs = self.control.to(rows.states.device), self.coeffs.to(rows.states.device)
        return rmu_loss(rows.states, (self.coeffs[:, None] * self.control)[topic], _all(topic))

    def retain_loss(self, rows: LayerRows) -> Tensor:
        topic = self._topic(rows)
        loss = sum(
            alpha * (topic == number).float().mean() * rmu_loss(rows.states, rows.ref_states, topic == number)
            for number, alpha in enumerate(self.alphas)
        )
        return loss if rows.kl_to_reference is None else loss + self.args.kl_coeff * rows.kl_to_reference

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        tell_movement(self)
        return result

    def method_state(self) -> dict[str, Any]:
        return {"control": self.control, "coeffs": self.coeffs}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.control, self.coeffs = state["control"], state["coeffs"]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir) / CONTROL
            folder.mkdir(exist_ok=True)
            write_method_state(folder, self.method_state())

    def _topic(self, rows: LayerRows) -> Tensor:
        """The topic of each token, `[N]`."""
        found = rows.batch.get("topic")
        return torch.zeros_like(rows.tokens.row) if found is None else found[rows.tokens.row]

    def _as_they_are(self, rows: LayerRows) -> Tensor:
        """The rows' states without what an add-on adds to them on their way (LAT): a length is a property of the
        model, and Adaptive RMU's is of the frozen one."""
        if not self.addons.having("around_policy"):
            return rows.states
        with torch.no_grad(), evaluating(self.model):
            return self.forward_path.seen(self.model, {FORGET: rows.batch}, "split")[FORGET]

    def _set_coeffs(self, states: Tensor, topic: Tensor) -> None:
        """Adaptive coefficients, from the first batch of each topic over all processes."""
        norms = states.detach().float().norm(dim=-1)
        sums = torch.zeros(2, len(self.coeffs), device=norms.device)
        sums[0].index_add_(0, topic, norms)
        sums[1].index_add_(0, topic, torch.ones_like(norms))
        total, count = self.accelerator.reduce(sums)
        found = self.args.adaptive_scale * total / count
        self.coeffs = torch.where(self.coeffs.to(found).isnan(), found, self.coeffs.to(found))

    def _has_topics(self) -> bool:
        return "topic" in self.train_dataset.roles[FORGET].column_names

    def _of_topics(self, name: str, topics: int) -> list[float]:
        values = getattr(self.args, name)
        if len(values) not in (1, topics):
            raise ValueError(f"{name}={values}: the forget rows have {topics} topics; give 1 or {topics} numbers.")
        return list(values) * topics if len(values) == 1 else list(values)


def read_control(folder: str | Path) -> Tensor:
    r"""What a saved model's forget rows were steered to: \\( c\,u \\) of each topic, `[topics, d]`.

    Raises:
        `ValueError`: if the folder holds no model that RMU saved.
    """
    state = read_method_state(Path(folder) / CONTROL)
    if not state:
        raise ValueError(f"{str(folder)!r} has no control vectors. Give a folder that an RMU run saved its model in.")
    return state["coeffs"][:, None] * state["control"]


def _all(topic: Tensor) -> Tensor:
    return torch.ones_like(topic, dtype=torch.bool)
