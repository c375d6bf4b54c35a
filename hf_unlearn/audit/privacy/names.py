# SPDX-License-Identifier: Apache-2.0
"""Attacks that need nothing but their name."""

from collections.abc import Sequence

from .attack import BaseAttack
from .attacks import MinKAttack, SignalAttack, ZlibAttack
from .classifiers import Classifier
from .fitted import ScrubAttack, fitted_attacks
from .subjects import LanguageModel, Subject


def named_attacks(seed: int = 0) -> dict[str, BaseAttack]:
    """Attacks that need nothing but their name; `seed` is that of the folds of those that learn."""
    attacks = (
        SignalAttack("loss", "logp"),
        SignalAttack("confidence", "top"),
        SignalAttack("entropy", "entropy", sign=-1),
        SignalAttack("margin", "margin"),
        MinKAttack(),
        MinKAttack(normalized=True),
        ZlibAttack(),
        ScrubAttack(seed),
        *fitted_attacks(seed),
    )
    return {attack.name: attack for attack in attacks}


def check_attack_names(names: Sequence[str]) -> None:
    """Raises `ValueError` for an attack that there is not, or that is named twice."""
    known = [*named_attacks(), "reference", "lira"]
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        what = f"there is no {unknown[0]!r}" if unknown else "one is named twice"
        raise ValueError(f"attacks={list(names)}: {what}. Give each once, of: {', '.join(known)}.")


def default_attacks(subject: Subject) -> list[str]:
    """Named attacks that a subject can be put to, less those that are made only where they are asked for."""
    left_out = {attack.name for attack in fitted_attacks()}
    if isinstance(subject, Classifier):
        left_out |= {"min-k", "min-k++", "zlib"}
    if isinstance(subject, LanguageModel) and subject.tokenizer is None:
        left_out.add("zlib")
    return [name for name in named_attacks() if name not in left_out]
