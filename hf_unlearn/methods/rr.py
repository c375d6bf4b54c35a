# SPDX-License-Identifier: Apache-2.0
"""Representation rerouting, the loss of circuit breakers (https://huggingface.co/papers/2406.04313)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..checks import check_left_out
from ..data.role_table import FORGET
from ..families.base import CAUSAL_LM
from ..forward.layer import LayerForward, LayerRows
from ..forward.needs import REFERENCE, Need
from ..losses import distance_loss, rerouting_loss
from ..training.trainer import UnlearnTrainer
from .layer_states import LayerStatesConfig, check_layers, in_layers, patterns_up_to, tell_movement


@dataclass
class RRConfig(LayerStatesConfig):
    r"""Settings of [`RRTrainer`]; defaults are the paper's for Llama-3-8B, which trains LoRA of rank 16 on all linear
    layers for 150 steps of 16 rows. Both weights are \\( \alpha \\): 10 there, 5 for Mistral-7B.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate."})
    forget_weight: float = field(
        default=10.0, metadata={"help": "Weight of the forget term, alpha; it falls to half over the run."}
    )
    retain_weight: float = field(
        default=10.0, metadata={"help": "Weight of the retain term, alpha; it rises from 0 to half over the run."}
    )
    layer_ids: list[int] = field(
        default_factory=lambda: [10, 20],
        metadata={
            "help": "Decoder layers whose outputs are rerouted, counted from 0; those above the last are frozen."
        },
    )

    def __post_init__(self):
        if not self.layer_ids or len({*self.layer_ids}) < len(self.layer_ids):
            raise ValueError(f"layer_ids={self.layer_ids!r}; give at least one layer, and each once.")
        check_left_out(self, ("use_kl_poison",), "RR keeps poisoned rows by their activations, and computes no KL.")
        super().__post_init__()

    @property
    def ends_at(self) -> int:
        return max(self.layer_ids)

    @property
    def trained_patterns(self) -> list[str]:
        return in_layers(range(self.ends_at + 1))


class RRTrainer(UnlearnTrainer):
    r"""\\( c_s \max(0, \cos(h_\theta(x_f), h_{ref}(x_f))) + c_r \| h_\theta(x_r) - h_{ref}(x_r) \|_2 \\), means over
    real tokens, prompts included, and over `layer_ids`. Over the \\( T \\) steps of a run \\( c_s = \alpha (1 -
    \frac{t}{2T}) \\) and \\( c_r = \alpha \frac{t}{2T} \\), \\( t \\) the steps done.

    At the first step the gradient of the forget term would be rounding alone (see
    [`~hf_unlearn.losses.rerouting_loss`]); a direction drawn from `seed` starts it, the same on every process.

    The log has the two terms with these factors as `forget/loss` and `retain/loss`, and without them as
    `forget/cosine` and `retain/distance`.
    """

    config_class = RRConfig
    method = "rr"
    paper = "2406.04313"
    families = (CAUSAL_LM,)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        generator = torch.Generator().manual_seed(self.args.seed)
        width = self.model.config.get_text_config().hidden_size
        # The same on every process: where tokens turn first.
        self.start = torch.randn((len(self.args.layer_ids), width), generator=generator)

    @classmethod
    def needs_of(cls, args: RRConfig):
        return dict.fromkeys((FORGET, *args.kept_terms), Need(layer=True, reference=(REFERENCE,)))

    def build_forward(self, model, args: RRConfig, needs, shape):
        return LayerForward(args.layer_ids, needs, shape, whole=args.fused_losses is False)

    def check_architecture(self, args: RRConfig, model: nn.Module) -> None:
        check_layers("layer_ids", args.layer_ids, model, "RR")

    def trainable_patterns(self, args: RRConfig, model: nn.Module) -> list[str] | None:
        return patterns_up_to(model, args.ends_at, "layer_ids", args.trainable_modules)

    @property
    def faded(self) -> float:
        """Half the share of the run's steps that are done; 0 outside of training."""
        return self.state.global_step / (2 * max(self.state.max_steps, 1))

    def forget_loss(self, rows: LayerRows) -> Tensor:
        self.start = self.start.to(rows.states.device)
        cosine = rerouting_loss(rows.states, rows.ref_states, self.start)
        self.meters.add("forget/cosine", cosine)
        return (1 - self.faded) * cosine

    def retain_loss(self, rows: LayerRows) -> Tensor:
        distance = distance_loss(rows.states, rows.ref_states)
        self.meters.add("retain/distance", distance)
        return self.faded * distance

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        tell_movement(self, "forget/cosine")
        return result
