# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic training asks for, by the usual estimate."""

from collections.abc import Callable

from torch import nn


def multiplied_weights(model: nn.Module, which: Callable[[nn.Parameter], bool] = lambda weight: True) -> int:
    """Weights that states are multiplied by: matrices and kernels, but not tables that are looked up.

    Args:
        model (`nn.Module`): whole, sharded or quantized.
        which (`Callable`): counts those for which it is true.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # One that is tied to the head is both.
    looked_up -= {id(getattr(head, "weight", None))}
    shapes = [_shape(weight) for weight in model.parameters() if id(weight) not in looked_up and which(weight)]
    return sum(shape.numel() for shape in shapes if len(shape) > 1)


class Arithmetic:
    """Floating point operations of training steps.

    Two a weight and position to go forward, as many back to the states, and as many to the weights that train; two for
    a reference that reads along. Attention's own products, what is recomputed, and what was computed ahead are left
    out. A method that leaves out layers or keeps their states does less; a classifier's head reads fewer positions.

    Args:
        model (`nn.Module`): with `requires_grad` as in training.
    """

    def __init__(self, model: nn.Module):
        self.weights = multiplied_weights(model)
        self.trained = multiplied_weights(model, lambda weight: weight.requires_grad)

    def of_step(self, positions: int, positions_of_reference: int = 0) -> float:
        """Operations of one forward and backward over rows of so many positions, padding included."""
        return 2.0 * (2 * self.weights + self.trained) * positions + 2.0 * self.weights * positions_of_reference

    def of_states(self, positions: int) -> float:
        """Operations of a forward over so many positions, and a backward that ends at states."""
        return 4.0 * self.weights * positions


def _shape(weight: nn.Parameter):
    """A weight's whole shape: ZeRO-3 and quantization keep another beside their data."""
    whole = getattr(weight, "ds_shape", None) or getattr(getattr(weight, "quant_state", None), "shape", None)
    return whole or weight.shape
