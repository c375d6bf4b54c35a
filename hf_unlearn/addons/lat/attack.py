# SPDX-License-Identifier: Apache-2.0
"""The perturbation of a micro-batch's forget rows, sought anew before they go through the policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ...data.formats import IGNORE_INDEX
from ...data.role_table import FORGET
from ...forward.build import build_forward
from ...forward.needs import LOGPS
from ...forward.path import Forward
from ...forward.real_tokens import RealTokens
from ...forward.shifts import Shifts
from ...forward.trial import own_draws
from ...fused.head import unwrapped
from ...modeling import frozen
from ...models.activations import check_layer, layers_of
from ..addon import BACKWARD, AddOn, Step
from ..cost import Cost, Sizes


class LatentAttack(AddOn):
    r"""\\( L_f(\theta, \delta^*) \\) in place of the method's \\( L_f(\theta, 0) \\): \\( \delta \\) is added to what
    some decoder layers put out for forget rows, and \\( \delta^* \\) lowers the forget answers' negative
    log-likelihood, \\( \lVert \delta_{t,l} \rVert_2 \le \epsilon \\) for each token t and layer l.

    Each row's \\( \delta \\) begins at 0 and takes steps of AdamW on the mean over the row's predicted tokens, put
    back into the ball after each: it depends on no other row. The weights get no gradient of it. All other rows, and
    the frozen models, go without.

    The published code takes four steps of the model on one perturbation, and its adversary also makes retain texts
    unlikely; here every step seeks its own, and retain rows are in the method's terms alone.

    Args:
        epsilon (`float`): radius of the ball, in units of the states.
        layers (`tuple[int, ...]`): that are perturbed together.
        steps (`int`), learning_rate (`float`): of the inner optimizer.
        tokens (`str`): `all` that are no padding, or those of the `prompt`, which no label stands at.
    """

    name, title = "lat", "LAT"
    # A backward pass inside a step, to states.
    requires = frozenset({BACKWARD})
    language_models_only = True

    def __init__(self, epsilon: float, layers: tuple[int, ...], steps: int, learning_rate: float, tokens: str):
        self.epsilon, self.layers, self.steps = epsilon, layers, steps
        self.learning_rate, self.tokens = learning_rate, tokens

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` where no forget row goes through the policy, or none that layers are perturbed for."""
        if FORGET not in method.trained_roles_of(args):
            raise ValueError(
                f"LAT perturbs forget rows as they go through the model, and {method.method} trains on none. Leave "
                "lat_epsilon out."
            )
        if method.replaces_answers(args):
            raise ValueError(
                f"LAT makes the forget answers likely, and {method.method} has other answers in their place, which "
                "the model is to give. Leave lat_epsilon out."
            )
        if args.fp16:
            raise ValueError("LAT takes gradients of states, which fp16 rounds to 0. Take bf16=True, or leave it out.")
        if args.torch_compile:
            raise ValueError("LAT changes the model's layers at every step, which torch_compile would compile anew.")
        self._check_ends(getattr(args, "ends_at", None), method.method)

    def _check_ends(self, last: int | None, method: str) -> None:
        above = [layer for layer in self.layers if last is not None and layer > last]
        if above:
            raise ValueError(
                f"lat_layers: layer {above[0]} is above layer {last}, the last that {method} reads of forget rows. "
                f"Name layers up to {last}."
            )

    def cost(self, sizes: Sizes) -> Cost:
        """Forwards of the forget rows to their answers, and backward passes to the lowest perturbed layer."""
        return Cost(inner_steps=self.steps, inner_layers=self.layers)

    def load(self, roles: Mapping, collator) -> None:
        """Raises `ValueError` for rows without the tokens that are perturbed."""
        if self.tokens != "prompt":
            return
        for number, labels in enumerate(roles[FORGET]["labels"]):
            if IGNORE_INDEX not in labels:
                raise ValueError(
                    f"lat_tokens='prompt', and forget row {number} has no prompt: all of it is trained on. Give rows "
                    "of `prompt` and `completion`, or take lat_tokens='all'."
                )

    def prepare(self, start) -> None:
        """Tries the path to the answers."""
        self.path.probe(start.model)

    def see_path(self, entry, path: Forward) -> None:
        """Tells the path which layers it may not skip.

        Raises:
            `ValueError`: if the model has not these layers, or nothing that is read depends on one.
        """
        count = len(layers_of(entry.model))
        for layer in self.layers:
            check_layer("lat_layers", layer, count)
        self._check_ends(path.ends_for(FORGET), "the method")
        path.shifted_layers = self.layers
        # Whatever the method reads, what is elicited are answers.
        self.path = build_forward(entry.model, entry.args.fused_losses, {FORGET: LOGPS}, "split")

    @contextmanager
    def around_policy(self, step: Step, parts: Mapping) -> Iterator[None]:
        """The forget rows' states are perturbed inside."""
        # A method may take steps without forget rows.
        if FORGET not in parts:
            yield
            return
        path, shifts = step.trainer.forward_path, Shifts(FORGET, self.sought(step, parts[FORGET]))
        path.shifts = shifts
        try:
            yield
        finally:
            path.shifts = None
        if missed := {*self.layers} - shifts.made:
            raise ValueError(
                f"LAT: {step.trainer.method} takes no forget rows through layer {min(missed)} by the forward path "
                "of its trainer, so they were not perturbed. Leave lat_epsilon out."
            )

    def sought(self, step: Step, part: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The perturbation of a batch of forget rows.

        Returns:
            `dict[int, Tensor]`: layer to `[N, d]`, for the tokens that are no padding; float32 or more.
        """
        # Not wrapped: a wrapper would wait for gradients of the weights.
        model = unwrapped(step.model)
        tokens, device = RealTokens.of(part), part["input_ids"].device
        shape = (len(tokens.row), model.config.get_text_config().hidden_size)
        dtype = torch.promote_types(model.dtype, torch.float32)
        by = {layer: torch.zeros(shape, dtype=dtype, device=device, requires_grad=True) for layer in self.layers}
        perturbed = torch.ones(shape[0], dtype=torch.bool, device=device)
        if self.tokens == "prompt":
            perturbed = part["labels"][tokens.row, tokens.column] == IGNORE_INDEX
        self._seek(step, model, part, by, perturbed[:, None])
        step.count(self.steps * part["input_ids"].numel())
        return {layer: found.detach() for layer, found in by.items()}

    def _seek(self, step: Step, model, part, by: dict[int, Tensor], perturbed: Tensor) -> None:
        found, seen = list(by.values()), []
        optimizer = torch.optim.AdamW(found, lr=self.learning_rate)
        # States of frozen layers that are on disk need not be computed here either.
        self.path.prefix, self.path.shifts = step.trainer.forward_path.prefix, Shifts(FORGET, by)
        with frozen(model), own_draws(perturbed.device):
            for _ in range(self.steps):
                rows = self.path.policy(model, {FORGET: part}, {})[FORGET]
                loss = rows.predicted.row_means(-rows.token_logps).sum()
                seen.append(rows.nll.detach())
                for states, gradient in zip(found, torch.autograd.grad(loss, found), strict=True):
                    states.grad = gradient * perturbed
                optimizer.step()
                with torch.no_grad():
                    for states in found:
                        states.copy_(states.renorm(2, 0, self.epsilon))
        step.log("lat/nll", seen[0])
        step.log("lat/elicited_nll", seen[-1])
