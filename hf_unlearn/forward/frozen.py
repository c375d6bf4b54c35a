# SPDX-License-Identifier: Apache-2.0
"""States below the first trained layer: constants, computed once, kept on disk and put in their place at every step.

Where only the head trains, a step is the head's work alone. Whether they are constants, and all that the layers above
read, is tried before the first step.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..fused.head import unwrapped
from ..fused.predicted import Predicted
from ..models.activations import captured, decoder_layers, stopped_after
from ..stored.row_cache import CachedRows, Entry, RunStart
from .passes import Pass, one_pass
from .path import Forward
from .trial import as_in_training, logits_of, relative_difference, tolerance


logger = logging.getLogger(__name__)

# Forwards that have to agree where a model draws random numbers in training.
DRAWS = 4


class FrozenPrefix(CachedRows):
    """The layers below the first that trains, as states on disk.

    Args:
        entry ([`~hf_unlearn.stored.row_cache.Entry`]):
            The run.
        forward ([`Forward`]):
            The path that rows take; from now on without these layers.
        layers (`nn.ModuleList`), depth (`int`):
            The policy's decoder layers, and how many of them are replaced; see [`frozen_depth`].
    """

    progress = "Frozen layers"

    def __init__(self, entry: Entry, forward: Forward, layers: nn.ModuleList, depth: int):
        super().__init__(entry, entry.roles, layer=depth)
        self.forward, self.layers, self.depth = forward, layers, depth
        forward.prefix = self
        # From states to what each replaced layer returns, once it was seen.
        self.returns: list[Callable] = []

    def lengths(self, role: str) -> dict[str, list[int]]:
        return {"states": [len(ids) for ids in self.roles[role]["input_ids"]]}

    def prepare(self, start: RunStart) -> None:
        """As [`CachedRows.prepare`], if states can be kept and the model computes the same from them; if not, the run
        goes on without and says why. Called by all ranks."""
        if self.store is not None:
            return
        reason = self._random_or_trained(start)
        if reason is None:
            super().prepare(start)
            reason = self._misread(start)
        # One decision for all ranks.
        kept = start.accelerator.reduce(torch.tensor(float(reason is None), device=self.args.device), "mean")
        if kept < 1:
            self.store = self.forward.prefix = None
            logger.info(
                "States of the %d frozen layers are computed at every step: %s.",
                self.depth,
                reason or "on another rank",
            )

    @contextmanager
    def entered(self, call: Pass, device: torch.device) -> Iterator[None]:
        """While entered, the frozen layers hand on what they would have computed for the rows of `call`."""
        if self.store is None:
            yield
            return
        flat = torch.cat([self.values(role, "states", index) for role, index in call.rows.items()]).to(device)
        states = flat[None]
        if (mask := call.inputs.get("attention_mask")) is not None:
            states = flat.new_zeros((*mask.shape, flat.shape[-1]))
            states[mask.bool()] = flat
        if self.args.reentrant and torch.is_grad_enabled():
            # Reentrant checkpoints train nothing where no input asks for a gradient.
            states.requires_grad_()
        replaced = self.layers[: self.depth]
        # Some layers have a forward of their own on the instance, as device maps put it there.
        own = [vars(layer).get("forward") for layer in replaced]
        for layer, returned in zip(replaced, self.returns, strict=True):
            layer.forward = lambda *args, returned=returned, **kwargs: returned(states)
        try:
            yield
        finally:
            for layer, forward in zip(replaced, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def like(self, start: RunStart) -> dict[str, Tensor]:
        role = next(iter(self.roles))
        return self.predict(start, role, self.batch(role, [0]))

    def predict(self, start, role: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """States of the rows' real tokens."""
        with captured({"states": self.layers[self.depth - 1]}) as taken:
            self.forward.reference(start.model, {role: batch})
        states = taken["states"]
        if self.forward.shape == "packed":
            return {"states": states[0]}
        # Passes may be narrower than the batch.
        return {"states": states[batch["attention_mask"][:, : states.shape[1]].bool()]}

    # What is tried

    def _random_or_trained(self, start: RunStart) -> str | None:
        """Why the layers' states are no constants in training; `None` where they are. Sees what the layers return."""
        model, device = start.model, self.args.device
        _, batch = self._short_rows()
        inputs, found = {name: batch[name] for name in ("input_ids", "attention_mask")}, []
        outputs: dict[int, object] = {}
        hooks = [
            layer.register_forward_hook(lambda module, args, output, number=number: outputs.update({number: output}))
            for number, layer in enumerate(self.layers[: self.depth])
        ]
        # A graph is asked for, of these layers alone.
        with as_in_training(model, device), torch.enable_grad(), stopped_after(model, self.depth - 1):
            try:
                for _ in range(DRAWS):
                    drawn = _draws(device)
                    logits_of(model, inputs)
                    found.append(_states_in(outputs.get(self.depth - 1)))
                    if found[-1] is None or found[-1].shape[:2] != inputs["input_ids"].shape:
                        return "they do not return states of every token"
                    if all(map(torch.equal, drawn, _draws(device))):
                        break
            finally:
                for hook in hooks:
                    hook.remove()
        self.returns = [_like(outputs[number]) for number in range(self.depth)]
        if _trains(found[0]):
            return "something below them trains"
        if not all(torch.equal(states, found[0]) for states in found):
            return "they are random in training (dropout or noise)"
        return None

    @torch.no_grad()
    def _misread(self, start: RunStart) -> str | None:
        """Why the model computes something else from kept states, `None` where it does not."""
        model, device = start.model, self.args.device
        role, batch = self._short_rows()
        call = one_pass({role: batch}, {role: Predicted.of(batch["labels"])})[0]
        real = batch["attention_mask"].bool()
        with as_in_training(model, device):
            wanted = logits_of(model, call.inputs)[real]
            # What a forward leaves behind must not help the next one: other tokens go in between.
            logits_of(model, {name: values[:1, :2].flip(1) for name, values in call.inputs.items()})
            try:
                with self.entered(call, device):
                    found = logits_of(model, call.inputs)[real]
            except Exception as error:  # noqa: BLE001
                # Whatever layers look for that replaced ones do not leave behind.
                return f"the layers above need more than states ({type(error).__name__}: {error})"
        error = relative_difference(found, wanted)
        if not error <= tolerance(start.accelerator, start.core):
            return f"the layers above compute something else from them (relative difference {error:.2g})"
        return None

    def _short_rows(self) -> tuple[str, dict[str, Tensor]]:
        """A role, and the shortest of its rows beside one of middling length."""
        role = next(role for role in self.roles if self.entry.needed[role])
        order = sorted(self.entry.needed[role], key=lambda i: len(self.roles[role][i]["input_ids"]))
        return role, self.batch(role, [order[0], order[len(order) // 2]])


def _draws(device: torch.device) -> list[Tensor]:
    """The state of what random numbers are drawn from."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def _states_in(output) -> Tensor | None:
    """The states among what a layer returns: itself, or the first of a tuple."""
    states = output[0] if isinstance(output, (tuple, list)) and output else output
    return states if isinstance(states, Tensor) and states.dim() == 3 else None


def _like(output) -> Callable:
    """From states to a return value of a layer's form; what else was in it is left out."""
    if isinstance(output, (tuple, list)):
        form, others = type(output), [None] * (len(output) - 1)
        return lambda states: form([states, *others])
    return lambda states: states


def _trains(states: Tensor) -> bool:
    """Whether the graph of `states` ends in a parameter."""
    seen, nodes = set(), [states.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def frozen_depth(model: nn.Module) -> tuple[nn.ModuleList | None, int]:
    """The decoder layers, and how many of them, from the first, have no parameter that trains.

    Returns:
        `tuple[nn.ModuleList | None, int]`: depth 0 where nothing can be kept: the embeddings train, the lowest layer
        trains, or the layers are not found.
    """
    core = unwrapped(model)
    layers = decoder_layers(core)
    if layers is None or any(parameter.requires_grad for parameter in core.get_input_embeddings().parameters()):
        return layers, 0
    depth = 0
    while depth < len(layers) and not any(parameter.requires_grad for parameter in layers[depth].parameters()):
        depth += 1
    return layers, depth
