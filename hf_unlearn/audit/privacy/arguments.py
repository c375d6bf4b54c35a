# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit privacy` takes."""

from dataclasses import dataclass, field
from pathlib import Path

from ...data.arguments import DataArguments
from ..arguments import LoadingArguments


# Benchmarks that come with rows like the forget rows which no model has seen.
WITH_HOLDOUT = ("world", "vqa_world", "vqa_v2", "tofu_mini")


@dataclass
class PrivacyArguments(DataArguments, LoadingArguments):
    """What `hf-unlearn audit privacy` takes beside the form of questions."""

    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Models to attack: folders (full weights or adapters; `*` is expanded) or Hub ids.",
            "aliases": ["--model_name_or_path"],
        },
    )
    nonmember_dataset: str | None = field(
        default=None,
        metadata={"help": "Rows like the forget rows that no model was trained on. Default: the benchmark's holdout."},
    )
    nonmember_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    nonmember_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    attacks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Default: all that can run of loss confidence entropy margin min-k min-k++ zlib scrub reference "
            "lira. On request: probe knn centroid features neural."
        },
    )
    fprs: list[float] = field(
        default_factory=lambda: [1e-5, 1e-4, 5e-4, 1e-3, 1e-2],
        metadata={
            "help": "False positive rates; those that the non-members cannot resolve are reported as unresolved."
        },
    )
    retrained_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model trained without the forget rows, with which every metric is compared."}
    )
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "For `reference`: another model that was not trained on the forget rows."}
    )
    shadow_model_name_or_path: str | None = field(
        default=None, metadata={"help": "For `lira`: base model of the shadow models."}
    )
    n_shadows: int = field(default=16, metadata={"help": "Number of shadow models; even."})
    shadow_epochs: float = field(
        default=5.0, metadata={"help": "Training epochs of a shadow model; use the target's."}
    )
    shadow_learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of a shadow model (AdamW, constant)."}
    )
    shadow_batch_size: int = field(default=16, metadata={"help": "Batch size of a shadow model."})
    shadow_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the shadow models' results, for resuming. Default: in output_dir."},
    )
    calibration_share: float = field(
        default=0.5, metadata={"help": "Share of the non-members used to set thresholds."}
    )
    audit_batch_size: int = field(default=32, metadata={"help": "Batch size."})
    max_length: int = field(default=1024, metadata={"help": "Maximum row length in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of splits, folds, permutations and shadow models."})
    cache: bool = field(
        default=True, metadata={"help": "Cache the model outputs that attacks use, by weights and rows."}
    )
    output_dir: str = field(default="runs/audit/privacy", metadata={"help": "Output folder of the report."})

    def __post_init__(self):
        from .names import check_attack_names
        from .rates import check_fprs

        super().__post_init__()
        if not self.models:
            raise ValueError("No model is named. Give `--models`: one or more folders or Hub ids.")
        if self.benchmark not in WITH_HOLDOUT and self.nonmember_dataset is None:
            raise ValueError(
                "No non-members are named. Give `--nonmember_dataset`: rows like the forget rows that no model was "
                "trained on. Retain rows are members and cannot stand in for them."
            )
        for name in ("audit_batch_size", "max_length", "shadow_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1.")
        self.fprs = check_fprs(self.fprs)
        attacks = self.attacks or []
        check_attack_names(attacks)
        if "reference" in attacks and self.reference_model_name_or_path is None:
            raise ValueError("The attack 'reference' needs `--reference_model_name_or_path`.")
        if "lira" in attacks and self.shadow_model_name_or_path is None:
            raise ValueError("The attack 'lira' needs `--shadow_model_name_or_path`, to fine-tune shadow models from.")
        self.models = [name for pattern in self.models for name in _filled_in(pattern)]


def _filled_in(pattern: str) -> list[str]:
    """The model folders that a pattern stands for."""
    from ...models.checkpoint_paths import upper_folder

    if "*" not in pattern:
        return [pattern]
    path = Path(pattern).expanduser()
    root = Path(path.anchor)
    found = sorted(root.glob(str(path.relative_to(root)) if path.is_absolute() else pattern))
    folders = [str(p) for p in found if (p / "config.json").is_file() or upper_folder(p)]
    if not folders:
        raise ValueError(f"--models {pattern!r}: no folder with a model matches.")
    return folders
