# SPDX-License-Identifier: Apache-2.0
"""What was read in one model."""

from dataclasses import dataclass, replace
from typing import ClassVar

from ..result import MetricResult
from ..robustness.measured import Measured
from ..robustness.recovery import remaining
from ..robustness.result import Robustness


INTACT = "erasure/intact/remaining"
# Two models that never knew differ by less (1.07 in the embedded world).
OVERSHOT = 1.25
VECTOR = ("cosine", "distance", "top_tokens")
SHARES = ("relative_change", "same_code", "stable_rank")


@dataclass
class Representation(Robustness):
    """As [`Robustness`], with further metrics.

    `erasure` (0 intact, 1 as in the retrained model) is 1 less `erasure/intact/remaining`. `restoration` is the share
    of what was lost that comes back where the model's upper layers read the original's states. `weights/...` say how
    far weights moved from the original's, `vectors/...` how far single value vectors did.
    """

    kind: ClassVar[str] = "representation"

    def __post_init__(self):
        if self.metrics:
            return
        super().__post_init__()
        for family, add in (("erasure", _erasure), ("restoration", _restoration), ("weights", _weights),
                            ("similarity", _similarity), ("vectors", _vectors)):  # fmt: skip
            for one in self.measured:
                if one.family == family:
                    self.metrics.update(add(one, self.settings))

    def compare(self, retrained=None, original=None) -> dict[str, MetricResult]:
        found = super().compare(retrained, original)
        layers = self.metrics["erasure"].details["curve"] if "erasure" in self.metrics else []
        if layers and INTACT in found:
            # One number for all layers; the figure shows each.
            found[INTACT].details["curve"] = [
                {**point, "unlearned": left, "original": 1.0, "never_knew": 0.0, "remaining": left}
                for point in layers
                for left in [None if point["unlearned"] is None else 1 - point["unlearned"]]
            ]
        beside = ("restoration", "erasure", "weights/", "vectors/")
        for name in (name for name in self.metrics if name.startswith(beside)):
            if retrained is not None and name in retrained.metrics and not name.startswith("erasure/"):
                details = self.metrics[name].details
                details["retrained"] = retrained.metrics[name].value
                theirs = retrained.metrics[name].details.get("curve", [])
                for point, other in zip(details.get("curve", []), theirs, strict=False):
                    point["never_knew"] = other["unlearned"]
        return found


def _erasure(one: Measured, settings) -> dict[str, MetricResult]:
    intact = one.tested.scores["intact"]
    groups = [settings["groups"][row] for row in one.tested.rows]
    n = len(intact)
    result = remaining(intact, [0.0] * n, [1.0] * n, groups, name="erasure")
    details = {key: result.details[key] for key in ("clusters", "reason") if key in result.details}
    over = one.more["overshoot"]
    details |= {"overshoot": over}
    if over is not None and over > OVERSHOT:
        details["note"] = (
            f"its states cost {over:.2g} times what those of a model that never knew cost: damage, which erasure hides"
        )
    details["curve"] = _curve(one.more["layers"], [None if s is None else 1 - s for s in one.more["by_layer"]])
    value = result.value if result.value is not None else result.details.get("estimate")
    ends = result.interval and tuple(min(max(1 - end, 0.0), 1.0) for end in reversed(result.interval))
    value = None if value is None else 1 - value
    return {"erasure": replace(result, value=value, interval=ends, direction="higher", details=details)}


def _restoration(one: Measured, settings) -> dict[str, MetricResult]:
    more = one.more
    result = remaining(more["restored"], more["own"], more["original"], settings["groups"], name="restoration")
    value = result.value if result.value is not None else result.details.get("estimate")
    details = {key: result.details[key] for key in ("clusters", "reason") if key in result.details}
    details |= {"curve": _curve(more["layers"], more["by_layer"]), "unit": "nats a token"}
    return {"restoration": replace(result, value=value, direction="none", details=details)}


def _weights(one: Measured, settings) -> dict[str, MetricResult]:
    if "reason" in one.more:
        return {}
    parts = {name: {key: one.more[key] for key in ("by_layer", "by_module")} for name in SHARES}
    return {
        f"weights/{name}": MetricResult(
            f"weights/{name}",
            one.more[name],
            one.more["n"],
            "none",
            details={
                "by_layer": [layer[name] for layer in parts[name]["by_layer"]],
                "by_module": {module: found[name] for module, found in parts[name]["by_module"].items()},
            },
        )
        for name in SHARES
    }


def _similarity(one: Measured, settings) -> dict[str, MetricResult]:
    found = {}
    for other, measures in one.more.items():
        for name, layers in measures.items():
            known = [value for value in layers if value is not None]
            value = sum(known) / len(known) if known else None
            key = f"similarity/{name}_to_{other}"
            found[key] = MetricResult(key, value, len(known), "none", details={"by_layer": layers})
    return found


def _vectors(one: Measured, settings) -> dict[str, MetricResult]:
    names = {f"vectors/{found['vector']}/{name}": found[name] for found in one.more["vectors"] for name in VECTOR}
    return {name: MetricResult(name, value, 1, "none") for name, value in names.items()}


def _curve(layers, values) -> list[dict]:
    return [
        {"setting": f"layer {layer}", "step": None, "unlearned": v} for layer, v in zip(layers, values, strict=True)
    ]
