# SPDX-License-Identifier: Apache-2.0
"""All methods as a table that one can choose from: read from their classes, beside what was measured of them."""

import inspect
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

from .. import losses
from ..bench.cases import APART, CASES
from ..bench.measured import costs_of
from ..data.role_table import RETAIN
from ..families.base import CAUSAL_LM
from ..forward.needs import REFERENCE, names_of
from ..methods import METHODS
from ..methods.families import LIMITS, SETTINGS, family_of
from ..report.table import Table


ALTERNATE = "alternate"
HEADS = (
    *("method", "family", "reference", "retain rows", "other answers", "forwards", "time / SFT", "memory / SFT"),
    *("runs with", "models", "paper"),
)
FORMULA = r"\\\\\((.*?)\\\\\)"
NONE, SHARDED = "-", "ZeRO, FSDP, LoRA"


@dataclass(frozen=True)
class Traits:
    """What a person asks of a method before taking it.

    Args:
        name (`str`), family (`str`), what (`str`): of the method.
        models (`str`): families of models that it is defined for.
        reference (`str`): frozen models that its rows are compared with, and with which retain term.
        retain (`str`): whether retain rows are trained on: `required`, `optional` or `-`.
        alternates (`bool`): whether every forget row needs another answer.
        forwards (`str`): passes through the model in a step, with a gradient + without; where that is no one number,
            why.
        time, memory (`str`): beside fine-tuning on the same rows, where measured.
        more (`str`): why that is more than one pass of the rows, where it is.
        engines (`str`): what it runs with.
        paper (`str`, *optional*): arXiv id.
    """

    name: str
    family: str
    what: str
    models: str
    reference: str
    retain: str
    alternates: bool
    forwards: str
    time: str
    memory: str
    more: str
    engines: str
    paper: str | None


def traits_of(name: str) -> Traits:
    """The traits of a method, of its default settings unless they say otherwise."""
    config, trainer = METHODS[name]
    terms = _terms(config, name)
    costs = costs_of(name)
    most = max(costs, key=lambda cost: cost.time, default=None)
    return Traits(
        name=name,
        family=family_of(name) or NONE,
        what=METHODS.describe(name),
        models=", ".join("language" if family == CAUSAL_LM else "classifiers" for family in trainer.families),
        reference=_reference(trainer, terms),
        retain=_retain(trainer, terms),
        alternates=any(ALTERNATE in trainer.needs_of(args) for args in terms),
        forwards=APART.get(name) or (NONE if most is None else f"{most.forwards:g} + {most.reference_forwards:g}"),
        time=NONE if most is None else f"{most.time:.2f}",
        memory=NONE if most is None else f"{max(cost.memory for cost in costs):.2f}",
        more=next((case.more for case in CASES.values() if case.method == name), ""),
        engines=_engines(config, name),
        paper=trainer.paper,
    )


def methods_table(names: Iterable[str], named: Callable, cited: Callable) -> Table:
    """A line a method.

    Args:
        names (`Iterable[str]`): of `METHODS`.
        named, cited (`Callable`): of traits, the cells of the method's name and of its paper.
    """
    lines = []
    for traits in map(traits_of, names):
        requires = [traits.reference, traits.retain, "yes" if traits.alternates else NONE]
        cost = [traits.forwards, traits.time, traits.memory]
        runs = [traits.engines, traits.models]
        lines.append([named(traits), traits.family, *requires, *cost, *runs, cited(traits)])
    return Table(list(HEADS), lines)


def about_of(name: str) -> tuple[str, str]:
    """The first paragraph of a method's class, and the one with the equation (its longest formula) where that is
    another: of the class, else of the first loss that it names. Plain text with LaTeX in it."""
    text = inspect.getdoc(METHODS[name][1])
    named = re.findall(r"hf_unlearn\.losses\.(\w+)`", text)
    said = [text, *(inspect.getdoc(getattr(losses, loss)) for loss in named)]
    parts = next((one for one in said if re.search(FORMULA, one, re.DOTALL)), text).split("\n\n")
    equation = max(parts, key=lambda part: max(map(len, re.findall(FORMULA, part, re.DOTALL)), default=0))
    first = text.split("\n\n")[0]
    return _plain(first), "" if equation == first else _plain(equation)


def _plain(text: str) -> str:
    """Without the marks of formulas and references."""
    text = re.sub(r"\[`~?(?:\w+\.)*(\w+)`\]", r"`\1`", text)
    return " ".join(re.sub(r"\\\\[()] ?", "", text).split())


def own_settings(name: str) -> dict[str, object]:
    """The arguments that only this method has, with their defaults."""
    from dataclasses import MISSING, fields

    config = METHODS[name][0]
    own = {field.name: field for field in fields(config) if field.name in config.own_fields()}
    return {
        field: one.default if one.default_factory is MISSING else one.default_factory() for field, one in own.items()
    }


def _config(config: type, name: str, **settings):
    with tempfile.TemporaryDirectory() as folder:
        about = {"output_dir": folder, "report_to": "none", "use_cpu": True}
        return config(**about, **SETTINGS.get(name, {}), **settings)


def _terms(config: type, name: str) -> list:
    """The settings with each retain term that the method's other defaults go with."""
    found = [_config(config, name)]
    for term in config.RETAIN_LOSSES:
        try:
            found.append(_config(config, name, retain_loss=term))
        except ValueError:
            continue
    # The first says whether the defaults are valid; a term that was left out is none of its own.
    return found[1:] or found


def _reference(trainer: type, terms: list) -> str:
    """Frozen models by name: those that every retain term requires, and those that some do."""
    named = []
    for args in terms:
        needs, trained = trainer.needs_of(args), trainer.trained_roles_of(args)
        named.append({*names_of({role: need for role, need in needs.items() if role in trained})})
    always = set.intersection(*named)
    found = sorted(always, key=lambda one: (one != REFERENCE, one))
    for name in sorted(set.union(*named) - always):
        some = [f"`{args.retain_loss}`" for args, names in zip(terms, named, strict=True) if name in names]
        found.append(f"{name} with {' or '.join(some)}")
    return ", ".join(found) or NONE


def _retain(trainer: type, terms: list) -> str:
    trained = [RETAIN in trainer.trained_roles_of(args) for args in terms]
    if all(trained):
        return "required"
    return "optional" if any(trained) else NONE


def _engines(config: type, name: str) -> str:
    """What the config itself accepts, beside what is known of some settings."""
    try:
        with _as_sharded():
            _config(config, name)
        runs = SHARDED
    except ValueError as refused:
        if "FSDP" not in str(refused):
            raise
        runs = "DDP, LoRA"
    return "; ".join(filter(None, (runs, LIMITS.get(name))))


@contextmanager
def _as_sharded():
    """As a launcher would start a run whose weights are in parts."""
    names, before = ("ACCELERATE_USE_FSDP",), dict(os.environ)
    os.environ |= dict.fromkeys(names, "true")
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
