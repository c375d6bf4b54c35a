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
        "trains the model until a head no longer finds the concept in its states, in rounds",
    ),
    "amnesiac": (
        "amnesiac",
        "AmnesiacConfig",
        "AmnesiacTrainer",
        "subtracts recorded training steps that saw forget rows, or trains on wrong labels for them",
    ),
    "fisher": (
        "fisher",
        "FisherConfig",
        "FisherTrainer",
        "noise on the weights that retain rows do not depend on; no training",
    ),
    "ga": ("ga", "GAConfig", "GATrainer", "gradient ascent; with a retain term GradDiff (nll) or GA+KL (kl)"),
    "npo": ("npo", "NPOConfig", "NPOTrainer", "negative preference optimisation; NPO-GDR (nll), NPO-KLR (kl)"),
    "simnpo": (
        "simnpo",
        "SimNPOConfig",
        "SimNPOTrainer",
        "NPO on mean log-probabilities, without a reference",
    ),
    "tnpo": ("tnpo", "TNPOConfig", "TNPOTrainer", "NPO of each token by itself; with alpha WTNPO"),
    "wga": (
        "wga",
        "WGAConfig",
        "WGATrainer",
        "gradient ascent, each token weighted by its probability",
    ),
    "satimp": (
        "satimp",
        "SatImpConfig",
        "SatImpTrainer",
        "gradient ascent, each token weighted by saturation and importance",
    ),
    "ceu": (
        "ceu",
        "CEUConfig",
        "CEUTrainer",
        "cross-entropy with the model's own prediction without the label",
    ),
    "undial": (
        "undial",
        "UNDIALConfig",
        "UNDIALTrainer",
        "distillation from the reference with the label's logit lowered",
    ),
    "whp": (
        "whp",
        "WHPConfig",
        "WHPTrainer",
        "fine-tuning on generic predictions, made with a model reinforced on the forget rows (Who's Harry Potter)",
    ),
    "ihl": (
        "ihl",
        "IHLConfig",
        "IHLTrainer",
        "inverted hinge loss: the likeliest other token takes the label's place (LoKU)",
    ),
    "unilogit": (
        "unilogit",
        "UnilogitConfig",
        "UnilogitTrainer",
        "self-distillation in which the label is as likely as under the uniform distribution",
    ),
    "unlikelihood": (
        "unlikelihood",
        "UnlikelihoodConfig",
        "UnlikelihoodTrainer",
        "minimises -log(1 - p) of each label: ascent that is bounded and fades",
    ),
    "max_entropy": (
        "max_entropy",
        "MaxEntropyConfig",
        "MaxEntropyTrainer",
        "predictions on forget rows as uncertain as they can be",
    ),
    "pdu": (
        "pdu",
        "PDUConfig",
        "PDUTrainer",
        "flat logits on forget rows, under a limit on the retain loss whose weight is a dual variable",
    ),
    "dpo": (
        "dpo",
        "DPOUnlearnConfig",
        "DPOUnlearnTrainer",
        "preference optimisation: another answer over the forget answer; IdkDPO with refusals",
    ),
    "altpo": (
        "altpo",
        "AltPOConfig",
        "AltPOTrainer",
        "DPO with answers that the model itself makes up, sampled before training",
    ),
    "llmu": (
        "llmu",
        "LLMUConfig",
        "LLMUTrainer",
        "gradient ascent, fine-tuning on random other answers, KL on retain rows; stops at a limit",
    ),
    "idk_nll": (
        "idk_nll",
        "IdkNLLConfig",
        "IdkNLLTrainer",
        "fine-tuning on refusals, or other answers, to the forget prompts; rejection tuning",
    ),
    "flat": (
        "flat",
        "FLATConfig",
        "FLATTrainer",
        "f-divergence between another answer and the forget answer; no reference, no retain rows",
    ),
    "jensun": (
        "jensun",
        "JensUnConfig",
        "JensUnTrainer",
        "Jensen-Shannon divergence to a fixed answer on forget rows, and to the reference on the others",
    ),
    "mu_align": (
        "mu_align",
        "MUAlignConfig",
        "MUAlignTrainer",
        "uniform predictions on forget rows, a penalty on confident ones, distillation on the others",
    ),
    "multidelete": (
        "multidelete",
        "MultiDeleteConfig",
        "MultiDeleteTrainer",
        "pairs of image and text get the representation of unrelated pairs; for classifiers such as ViLT",
    ),
    "rmu": (
        "rmu",
        "RMUConfig",
        "RMUTrainer",
        "representation misdirection: steers one layer's activations",
    ),
    "rr": (
        "rr",
        "RRConfig",
        "RRTrainer",
        "representation rerouting (circuit breakers): activations turn away from the reference's",
    ),
    "lunar": (
        "lunar",
        "LUNARConfig",
        "LUNARTrainer",
        "moves one layer's activations on forget prompts to where prompts are that the model refuses",
    ),
    "repnoise": (
        "repnoise",
        "RepNoiseConfig",
        "RepNoiseTrainer",
        "representation noising: every layer's states of forget answers become noise that no head reads",
    ),
    "retrain": (
        "retrain",
        "RetrainConfig",
        "RetrainTrainer",
        "training without the forget rows, from the original's initial model",
    ),
    "scrub": (
        "scrub",
        "ScrubConfig",
        "ScrubTrainer",
        "diverges from a frozen teacher on forget rows and follows it on the others; SCRUB+R with rewind",
    ),
}


class _Methods(Mapping):
    """Read-only dict of name to `(Config, Trainer)` that imports a method's file on access."""

    def __getitem__(self, name: str) -> tuple[type, type]:
        try:
            self.check(name)
        except ValueError as unknown:
            raise KeyError(str(unknown)) from None
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

    def check(self, name: str) -> None:
        """Raises `ValueError` for a name that is no method's."""
        if name not in _METHODS:
            near = get_close_matches(str(name), _METHODS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown method {name!r}; allowed: {', '.join(_METHODS)}.{hint}")

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
