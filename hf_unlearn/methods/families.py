# SPDX-License-Identifier: Apache-2.0
"""What kind of objective each method is, and what its class alone does not show."""

# family -> what it does to forget rows, and its methods
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ascent": ("raises the loss of the forget answers", ("ga", "wga", "satimp", "ihl", "unlikelihood")),
    "preference": (
        "prefers what is not the forget answer, until it is unlikely enough",
        ("npo", "simnpo", "tnpo", "dpo", "altpo", "flat"),
    ),
    "distillation": (
        "gives the predictions at forget answers another target",
        ("ceu", "undial", "unilogit", "whp", "max_entropy", "pdu", "jensun", "mu_align", "scrub"),
    ),
    "other answers": ("trains on other answers to the forget prompts", ("idk_nll", "llmu")),
    "representation": (
        "moves the states inside the model, away from what they say of forget rows",
        ("rmu", "rr", "lunar", "align_then_unlearn", "multidelete"),
    ),
    "weights": ("changes weights without a forget term", ("fisher", "amnesiac")),
    "retraining": ("trains without the forget rows: what the others are judged against", ("retrain",)),
}

# Methods whose settings have no default: some that make a config.
SETTINGS: dict[str, dict] = {"align_then_unlearn": {"concept": ["it"]}}

# What runs on whole weights, or with an adapter, in some settings only.
LIMITS = {
    **dict.fromkeys(("rmu", "rr", "lunar"), "no LoRA with ZeRO-3"),
    "amnesiac": "`relabel`: ZeRO, FSDP too",
    "scrub": "`rewind`: one process, DDP",
    "mu_align": "`grad_ortho`: one process",
}


def family_of(name: str) -> str | None:
    """The family that lists a method; `None` where none does."""
    return next((family for family, (_, names) in FAMILIES.items() if name in names), None)
