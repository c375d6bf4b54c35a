# SPDX-License-Identifier: Apache-2.0
"""One file a paper. `METHODS` maps a recipe's `method:` to its config and trainer, loaded when they are asked for."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module


# name -> (module, config, trainer, what it is)
_METHODS = {
    "align_then_unlearn": (
        "align_then_unlearn",
        "AlignThenUnlearnConfig",
        "AlignThenUnlearnTrainer",
        "pushes states until a head no longer finds the concept in them, in rounds",
    ),
    "amnesiac": (
        "amnesiac",
        "AmnesiacConfig",
        "AmnesiacTrainer",
        "takes back recorded training steps that saw forget rows, or gives those wrong labels",
    ),
    "fisher": (
        "fisher",
        "FisherConfig",
        "FisherTrainer",
        "noise on the weights that retain rows do not depend on, in one shot",
    ),
    "ga": ("ga", "GAConfig", "GATrainer", "gradient ascent; with a retain term GradDiff (nll) or GA+KL (kl)"),
    "npo": ("npo", "NPOConfig", "NPOTrainer", "negative preference optimisation; NPO-GDR (nll), NPO-KLR (kl)"),
    "mu_align": (
        "mu_align",
        "MUAlignConfig",
        "MUAlignTrainer",
        "uniform predictions on forget rows, a penalty on what stays sure, distillation on the others",
    ),
    "multidelete": (
        "multidelete",
        "MultiDeleteConfig",
        "MultiDeleteTrainer",
        "pictures of forget rows take the meaning of other rows' texts; classifiers of both",
    ),
    "rmu": (
        "rmu",
        "RMUConfig",
        "RMUTrainer",
        "representation misdirection: steers one layer's activations",
    ),
    "retrain": (
        "retrain",
        "RetrainConfig",
        "RetrainTrainer",
        "training without the forget rows, from the model that the original began as",
    ),
    "scrub": (
        "scrub",
        "ScrubConfig",
        "ScrubTrainer",
        "away from a frozen teacher on forget rows, after it on the others, in turns; SCRUB+R with rewind",
    ),
}


class _Methods(Mapping):
    """Read-only dict of name to `(Config, Trainer)` that imports a method's file on access."""

    def __getitem__(self, name: str) -> tuple[type, type]:
        if name not in _METHODS:
            near = get_close_matches(str(name), _METHODS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"Unknown method {name!r}; allowed: {', '.join(_METHODS)}.{hint}")
        module, config, trainer, _ = _METHODS[name]
        loaded = import_module(f"{__name__}.{module}")
        return getattr(loaded, config), getattr(loaded, trainer)

    def __contains__(self, name: object) -> bool:
        # A Mapping would import the method to find out.
        return name in _METHODS

    def __iter__(self) -> Iterator[str]:
        return iter(_METHODS)

    def __len__(self) -> int:
        return len(_METHODS)

    def describe(self, name: str) -> str:
        """One line on what a method is."""
        return _METHODS[name][3]

    def where(self, name: str) -> tuple[str, str]:
        """Module and class of a method's config, not imported."""
        module, config, _, _ = _METHODS[name]
        return f"{__name__}.{module}", config

    def public_names(self) -> dict[str, str]:
        """Public class name -> module that defines it."""
        return {
            public: f"{__name__}.{module}"
            for module, config, trainer, _ in _METHODS.values()
            for public in (config, trainer)
        }


METHODS = _Methods()
