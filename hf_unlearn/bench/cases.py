# SPDX-License-Identifier: Apache-2.0
"""What is measured: a method with its settings, or supervised fine-tuning on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        label (`str`): its name there.
        method (`str`, *optional*): name in `METHODS`; `None` is supervised fine-tuning.
        settings (`dict`): fields of the method's config.
        roles (`tuple[str, ...]`): whose rows a step trains on.
        second_model (`bool`): hand the trainer a copy of the whole model as its reference.
        beside (`tuple[str, ...]`): roles whose rows must be there and are not in the same step.
        prompt (`int`): tokens of a row that are its prompt; -1 for all but the last.
        others (`tuple[str, ...]`): names of frozen models that rows are compared with beside the reference.
        more (`str`): what a step does that fine-tuning does not, where that is more than one pass of the rows.
    """

    label: str
    method: str | None = None
    settings: dict = field(default_factory=dict)
    roles: tuple[str, ...] = ("forget", "retain")
    second_model: bool = False
    beside: tuple[str, ...] = ()
    prompt: int = 0
    others: tuple[str, ...] = ()
    more: str = ""

    def settings_for(self, layers: int) -> dict:
        """The settings for a model of so many layers: RMU reads layer 7 of 32 and trains three, RR reads 10 and 20,
        LUNAR 22. Others have the same for all sizes."""
        if self.method == "lunar":
            return {"layer_id": 22 * layers // 32, **self.settings}
        if self.method == "rr":
            return {"layer_ids": sorted({10 * layers // 32, 20 * layers // 32}), **self.settings}
        if self.method != "rmu":
            return self.settings
        layer = 7 * layers // 32
        trained = max(round(3 * layers / 32), 1)
        return {"layer_id": layer, "layer_ids": list(range(layer + 1 - trained, layer + 1)), **self.settings}

    @property
    def plain(self) -> "Case":
        """The same objective as peers compute it."""
        settings = {**self.settings, **PLAIN}
        if self.method == "rmu":
            # Of its reference the trainer would copy the trained matrices alone, and what is below them keep on disk.
            settings["cache_frozen"] = False
        return replace(self, label=f"{self.label} (plain)", settings=settings, second_model=self.method == "rmu")

    @property
    def baseline(self) -> str:
        """Label of the fine-tuning on the same rows."""
        return SFT[self.roles].label


SFT = {
    ("forget", "retain"): Case("sft"),
    ("forget",): Case("sft (forget rows)", roles=("forget",)),
    ("forget", "alternate"): Case("sft (forget rows, alternates)", roles=("forget", "alternate")),
    ("forget", "retain", "alternate"): Case("sft (with alternates)", roles=("forget", "retain", "alternate")),
    ("alternate",): Case("sft (alternates)", roles=("alternate",)),
}
# As many rows of the same length.
SFT["retain",] = SFT["forget",]
CASES = {
    "ga": Case("ga", "ga", {"retain_loss": "none"}, ("forget",)),
    "grad_diff": Case("grad_diff", "ga", {"retain_loss": "nll"}),
    "ga_kl": Case("ga_kl", "ga", {"retain_loss": "kl"}),
    "npo": Case("npo", "npo", {"retain_loss": "none"}, ("forget",)),
    "npo_gdr": Case("npo_gdr", "npo", {"retain_loss": "nll"}),
    "npo_klr": Case("npo_klr", "npo", {"retain_loss": "kl"}),
    "simnpo": Case("simnpo", "simnpo", {"retain_loss": "nll"}),
    "wga": Case("wga", "wga", {"retain_loss": "nll"}),
    "satimp": Case("satimp", "satimp", {"retain_loss": "nll"}),
    "tnpo": Case("tnpo", "tnpo", {"retain_loss": "nll"}),
    "ihl": Case("ihl", "ihl", {"retain_loss": "nll"}),
    "unilogit": Case("unilogit", "unilogit", {"retain_loss": "nll"}),
    "unlikelihood": Case("unlikelihood", "unlikelihood", {"retain_loss": "nll"}),
    "max_entropy": Case("max_entropy", "max_entropy", {"retain_loss": "nll"}),
    "ceu": Case("ceu", "ceu", {"retain_loss": "none"}, ("forget",)),
    "undial": Case("undial", "undial", {"retain_loss": "none"}, ("forget",)),
    "rmu": Case("rmu", "rmu"),
    "rr": Case("rr", "rr"),
    "lunar": Case("lunar", "lunar", {"refusal_template": "{prompt}"}, prompt=-1),
    "repnoise": Case(
        "repnoise",
        "repnoise",
        more="the head reads forget rows once for every layer, and pairs of their tokens are compared at every layer",
    ),
    "mu_align": Case("mu_align", "mu_align"),
    "dpo": Case("dpo", "dpo", {"retain_loss": "none"}, ("forget", "alternate")),
    "altpo": Case("altpo", "altpo", {"retain_loss": "none", "num_alternates": 1}, ("forget", "alternate")),
    "llmu": Case("llmu", "llmu", {"num_alternates": 1}, ("forget", "retain", "alternate")),
    "pdu": Case("pdu", "pdu"),
    "idk_nll": Case("idk_nll", "idk_nll", {"retain_loss": "none"}, ("alternate",), beside=("forget",)),
    "flat": Case("flat", "flat", {}, ("forget", "alternate")),
    "jensun": Case("jensun", "jensun"),
    "whp": Case("whp", "whp", {"retain_loss": "none"}, ("forget",), others=("reinforced",)),
    # A step is of one role; the first ones are of forget rows.
    "scrub": Case("scrub", "scrub", {}, ("forget",), beside=("retain",)),
    "amnesiac": Case("amnesiac", "amnesiac", {"variant": "relabel"}, prompt=1),
    "retrain": Case("retrain", "retrain", {}, ("retain",), beside=("forget",)),
}
# Their pass ends at a layer: what they have to do is a part of the model's arithmetic.
PARTIAL = ("rmu", "rr", "lunar")
# No ratio to one step of fine-tuning: why, and which passes there are.
APART = {
    "align_then_unlearn": "1 a step: a head trains on states, then the model through it; an encoder reads rows before",
    "fisher": "1 a retain row, once; then 1 over held-out rows for each of `scales`",
    "multidelete": "1 + 0: pairs of image and text, so a classifier's; forget rows twice",
}
DEFAULT_METHODS = ("ga_kl", "npo", "npo_klr")
# What peers do: logits of the whole vocabulary, and a second model for the reference.
PLAIN = {"fused_losses": False, "reference": "live"}


def select(methods: Sequence[str], plain: bool) -> list[Case]:
    """The cases to run, each fine-tuning baseline before the first that needs it.

    Args:
        methods (`Sequence[str]`): names in `CASES`, `all` of them; `sft` is allowed, and always there anyway.
        plain (`bool`): add the plain path of each.
    """
    cases: list[Case] = [SFT["forget", "retain"]] if "sft" in methods else []
    asked = (one for given in methods for one in (CASES if given == "all" else [given]))
    for name in dict.fromkeys(asked):
        if name == "sft":
            continue
        if name not in CASES:
            near = get_close_matches(name, CASES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"Unknown method {name!r}; allowed: all, sft, {', '.join(CASES)}.{hint}")
        case = CASES[name]
        if SFT[case.roles] not in cases:
            cases.append(SFT[case.roles])
        cases.append(case)
        if plain:
            cases.append(case.plain)
    return cases
