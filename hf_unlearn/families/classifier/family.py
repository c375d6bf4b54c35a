# SPDX-License-Identifier: Apache-2.0
"""The family of classifiers."""

from dataclasses import replace

from ...addons.settings import addons_of
from ...data.role_table import ALTERNATE
from ...forward.planning import APART
from ...processes import asks_fsdp
from ..base import CLASSIFIER, Family
from .collator import ClassCollator
from .encode import Classes, check_disjoint, encode_classes
from .forward import ClassForward


# By whether pictures are classified.
TASKS = ("text-classification", "image-classification")


class Classifier(Family):
    """Rows that are one prediction each, of the classes of a picture, a text, or a question about a picture.

    Args:
        config (`PreTrainedConfig`): the model's.
        likelihood (`str`): `auto`, `bernoulli` or `softmax`.
        architecture (`str`): the model's class.
    """

    name = CLASSIFIER
    columns = ("image", "question", "label_ids", "label_weights")

    def __init__(self, config, likelihood: str, architecture: str):
        self.config, self.architecture = config, architecture
        text = hasattr(config, "vocab_size")
        # Not all models of pictures have a fixed size of them.
        picture = hasattr(config, "image_size") or not text
        self.reads = ("image",) * picture + ("question",) * text
        self.pipeline_tag = "visual-question-answering" if text and picture else TASKS[picture]
        many = config.model_type == "vilt" or config.problem_type == "multi_label_classification"
        self.likelihood = ("bernoulli" if many else "softmax") if likelihood == "auto" else likelihood
        self.classes = Classes({str(k): int(v) for k, v in config.label2id.items()}, self.likelihood == "bernoulli")

    def encode_roles(self, forget, retain, processor, args, poisoned=None, alternate=None, needed=()):
        addons = [addon for addon in addons_of(args) if addon.language_models_only]
        asked = {addon.title[0].lower() + addon.title[1:]: True for addon in addons}
        asked |= {
            **({} if poisoned is None else {"poisoned rows": True}),
            "alternates": alternate is not None or ALTERNATE in needed,
            "forward_passes='packed'": args.forward_passes == "packed",
            "fused_losses=True": args.fused_losses is True,
            # accelerate shards ViLT's embeddings twice, which torch refuses.
            "FSDP": asks_fsdp(args),
        }
        if wrong := [name for name, is_asked in asked.items() if is_asked]:
            raise ValueError(f"{', '.join(wrong)}: for causal language models, and this model is a classifier.")
        roles = {"forget": self.encode(forget, processor, args.max_length, "forget")}
        if args.retain_loss != "none":
            if retain is None:
                raise ValueError(
                    f"retain_loss={args.retain_loss!r} needs retain rows. Pass `retain_dataset`, or take "
                    "retain_loss='none'."
                )
            roles["retain"] = self.encode(retain, processor, args.max_length, "retain")
            if not args.allow_overlap:
                check_disjoint(roles["forget"], roles["retain"])
        return roles

    def encode(self, rows, processor, max_length, name):
        found = encode_classes(rows, self.classes, name)
        present = {"question" if column == "text" else column for column in found.column_names}
        if missing := [column for column in self.reads if column not in present]:
            raise ValueError(f"{name}_dataset has no {' and no '.join(missing)}, which this model reads.")
        return found

    def collator(self, processor, roles, max_length, pad_to_multiple_of=None):
        # Texts are cut where the model has no more positions, at the latest.
        tokenizer = getattr(processor, "tokenizer", processor)
        positions = getattr(self.config, "max_position_embeddings", None)
        limits = [x for x in (max_length, getattr(tokenizer, "model_max_length", None), positions) if x is not None]
        return ClassCollator(processor, tuple(roles), len(self.classes), min(limits, default=None))

    def check_model(self, model, processor, ref_model):
        if ref_model is not None and ref_model.config.label2id != model.config.label2id:
            raise ValueError("The reference model has other classes than the model. Leave `ref_model` out.")

    def adapter_config(self, peft_config):
        # PEFT's wrapper for language models hands on their inputs alone.
        return replace(peft_config, task_type=None) if peft_config.task_type == "CAUSAL_LM" else peft_config

    def predictions(self, model, processor) -> int:
        return len(self.classes)

    def positions(self, batch):
        text = batch["input_ids"].shape[-1] if "input_ids" in batch else 0
        if "pixel_values" not in batch:
            return text
        patch = getattr(self.config, "patch_size", None)
        if not isinstance(patch, int):
            # As of convolutions, whose layers have different numbers of them.
            return 0
        height, width = (side // patch for side in batch["pixel_values"].shape[-2:])
        return text + height * width

    def shape_of(self, pairs, args) -> str:
        if args.forward_passes != "auto":
            return args.forward_passes
        return "one" if args.grad_ortho == "off" else APART

    def build_forward(self, model, args, needs, shape):
        return ClassForward(needs, shape, self.likelihood)
