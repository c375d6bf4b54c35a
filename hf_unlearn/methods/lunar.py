# SPDX-License-Identifier: Apache-2.0
"""LUNAR (https://huggingface.co/papers/2502.07218): forget prompts are moved to where prompts are that the model
refuses."""

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_left_out, check_number, check_patterns
from ..data.collator import RoleCollator
from ..data.formats import IGNORE_INDEX
from ..data.other_answers import read_lines
from ..data.prompt_form import SLOT, in_form_of, prompts_of
from ..data.role_table import FORGET
from ..families.base import CAUSAL_LM
from ..forward.layer import LayerForward, LayerRows
from ..forward.needs import REFERENCE, Need
from ..losses import rmu_loss
from ..modeling import evaluating, is_peft_model
from ..models.activations import check_layer
from ..models.layer_choice import check_below, freeze_outside, parameters_by_name
from ..training.trainer import UnlearnTrainer
from .layer_states import LayerStatesConfig, check_layers, in_layers, tell_movement


logger = logging.getLogger(__name__)

UNVERIFIABLE = "recipes/unverifiable.txt"
TOKENS = ("prompt", "last")


@dataclass
class LUNARConfig(LayerStatesConfig):
    """Settings of [`LUNARTrainer`]; defaults are those of the published code for Llama-3-8B-Instruct."""

    learning_rate: float = field(default=1e-2, metadata={"help": "Initial learning rate."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over the forget rows."})
    layer_id: int = field(default=22, metadata={"help": "Decoder layer whose output is moved, counted from 0."})
    module_names: list[str] = field(
        default_factory=lambda: [r"\bdown_proj\b"],
        metadata={"help": "Regular expressions for the names of the trained parameters of this layer."},
    )
    refusal_coeff: float = field(default=2.0, metadata={"help": "Multiple of the direction that is added."})
    refusal_file: str = field(
        default=UNVERIFIABLE,
        metadata={
            "help": "Text file of prompts that the model refuses or cannot know, one a line; the default comes with "
            "the package."
        },
    )
    refusal_template: str | None = field(
        default=None,
        metadata={
            "help": "How the forget rows put a question, as text with {prompt} in it. Default: the chat template, "
            "with the rows' system prompt, or `Question: {prompt}`, `Answer:`."
        },
    )
    lunar_tokens: str = field(
        default="prompt",
        metadata={"help": "Tokens that are moved and kept: all of a `prompt`, as published code, or its `last`."},
    )

    def __post_init__(self):
        check_choice("lunar_tokens", self.lunar_tokens, TOKENS)
        check_number("refusal_coeff", self.refusal_coeff, above=0)
        check_patterns("module_names", self.module_names)
        if self.refusal_template is not None and SLOT not in self.refusal_template:
            raise ValueError(f"refusal_template={self.refusal_template!r} has no {SLOT}. Write it where prompts go.")
        check_left_out(self, ("use_kl_poison",), "LUNAR keeps poisoned rows by their activations, and computes no KL.")
        self.refusals()
        super().__post_init__()

    @property
    def ends_at(self) -> int:
        return self.layer_id

    @property
    def trained_patterns(self) -> list[str]:
        return in_layers([self.layer_id], self.module_names)

    def refusals(self) -> list[str]:
        """The prompts of `refusal_file`."""
        return read_lines("refusal_file", self.refusal_file, "prompt", UNVERIFIABLE)


class LUNARTrainer(UnlearnTrainer):
    r"""\\( \| h_\theta(x_f) - (h_{ref}(x_f) + c\,r) \|^2 + \| h_\theta(x_r) - h_{ref}(x_r) \|^2 \\), means over the
    tokens of prompts and over dimensions. \\( r \\) is the mean state of the last token of prompts that the model
    refuses, minus that of the forget prompts, at the output of `layer_id`.

    Only the layer's down projection trains. Where its product is added to what goes around it, as in Llama, the terms
    are the paper's regression \\( \| W' x - (W x + c\,r) \|^2 \\). Direction and states are of the model as it enters;
    the direction is kept with checkpoints.
    """

    config_class = LUNARConfig
    method = "lunar"
    paper = "2502.07218"
    families = (CAUSAL_LM,)
    direction: Tensor | None = None

    # What the method says of itself

    @classmethod
    def check_early(cls, args, roles, processor, config) -> None:
        check_layer("layer_id", args.layer_id, config.get_text_config().num_hidden_layers)
        _check_room(args, _refusal_ids(args, roles, processor), config)

    def check_rows(self, args: LUNARConfig, roles, tokenizer) -> None:
        self.refusal_ids = _refusal_ids(args, roles, tokenizer)

    @classmethod
    def needs_of(cls, args: LUNARConfig):
        return dict.fromkeys((FORGET, *args.kept_terms), Need(layer=True, reference=(REFERENCE,)))

    def build_forward(self, model, args: LUNARConfig, needs, shape):
        return LayerForward(args.layer_id, needs, shape, whole=args.fused_losses is False)

    def check_architecture(self, args: LUNARConfig, model: nn.Module) -> None:
        check_layers("layer_id", [args.layer_id], model, "LUNAR")
        _check_room(args, self.refusal_ids, model.config)

    def trainable_patterns(self, args: LUNARConfig, model: nn.Module) -> list[str] | None:
        """The parameters to train, by full name; of an adapter, what it adds to them."""
        if args.trainable_modules:
            check_below(model, args.trainable_modules, args.layer_id)
            return args.trainable_modules
        names = parameters_by_name(model, [args.layer_id], args.module_names)
        if is_peft_model(model):
            freeze_outside(model, [args.layer_id], args.module_names)
            return None
        return [f"^{re.escape(name)}$" for name in names]

    # The objective

    def role_rows(self, model, inputs):
        # Add-ons read terms without `compute_loss`.
        if self.direction is None:
            self.direction = self._direction(model)
        return super().role_rows(model, inputs)

    def forget_loss(self, rows: LayerRows) -> Tensor:
        self.direction = self.direction.to(rows.states.device)
        target = rows.ref_states + self.args.refusal_coeff * self.direction.to(rows.ref_states.dtype)
        return rmu_loss(rows.states, target, self._moved(rows))

    def retain_loss(self, rows: LayerRows) -> Tensor:
        return rmu_loss(rows.states, rows.ref_states, self._moved(rows))

    def _moved(self, rows: LayerRows) -> Tensor:
        """Bool `[N]`, the tokens that the terms are over."""
        last = _last_of_prompt(rows.batch["labels"])[rows.tokens.row]
        column = rows.tokens.column
        return column == last if self.args.lunar_tokens == "last" else column <= last

    @torch.no_grad()
    def _direction(self, model: nn.Module) -> Tensor:
        """`[d]`, float32, the same on every process: all compute it of all rows."""
        forget = prompts_of(self.train_dataset.roles[FORGET], FORGET, "LUNAR")
        with evaluating(model):
            refused, asked = (self._mean_state(model, prompts) for prompts in (self.refusal_ids, forget))
        if self.args.process_index == 0:
            logger.info(
                "Layer %d: the direction from %d forget prompts to %d that are refused has a norm of %.4g; forget "
                "prompts have one of %.4g.",
                self.args.layer_id,
                len(forget),
                len(self.refusal_ids),
                (refused - asked).norm(),
                asked.norm(),
            )
        return refused - asked

    def _mean_state(self, model: nn.Module, prompts: list[list[int]]) -> Tensor:
        total, size = 0.0, self.args.per_device_eval_batch_size
        collator, prompts = RoleCollator(self.processing_class.pad_token_id), sorted(prompts, key=len)
        for start in range(0, len(prompts), size):
            part = collator.pad([{"input_ids": ids} for ids in prompts[start : start + size]])
            part["index"] = torch.arange(len(part["input_ids"]))
            part = {name: values.to(self.args.device) for name, values in part.items()}
            with self.compute_loss_context_manager():
                states = self.forward_path.seen(model, {FORGET: part}, "one")[FORGET]
            ends = part["attention_mask"].sum(1).cumsum(0) - 1
            total = total + states[ends].float().sum(0)
        return total / len(prompts)

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        tell_movement(self)
        return result

    def method_state(self) -> dict[str, Any]:
        return {} if self.direction is None else {"direction": self.direction}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.direction = state["direction"]


def _last_of_prompt(labels: Tensor) -> Tensor:
    """`[B]`, the position before the first label."""
    return (labels != IGNORE_INDEX).int().argmax(1) - 1


def _refusal_ids(args: LUNARConfig, roles, tokenizer) -> list[list[int]]:
    """The prompts that are refused, as tokens in the form of the forget prompts.

    Raises:
        `ValueError`: for rows without prompts, or of a form that is not known.
    """
    prompts = {role: prompts_of(rows, role, "LUNAR") for role, rows in roles.items()}
    return in_form_of(args.refusals(), prompts[FORGET], args.refusal_template, tokenizer)


def _check_room(args: LUNARConfig, prompts: list[list[int]], config) -> None:
    """Raises `ValueError` for a prompt of the file that is longer than what the model reads: the direction is taken at
    its last token."""
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    number, longest = max(enumerate(map(len, prompts)), key=lambda one: one[1])
    if room is not None and longest > room:
        raise ValueError(
            f"refusal_file={args.refusal_file!r}: prompt {number + 1} has {longest} tokens in the form of the forget "
            f"prompts, and the model reads at most {room}. Shorten it, or take it out."
        )
