# SPDX-License-Identifier: Apache-2.0
"""Shadow models, fine-tuned with the plain Trainer, one after the other."""

import json
import tempfile
from pathlib import Path

from .arguments import PrivacyArguments


def train_shadow_models(args: PrivacyArguments, prepared):
    """Fine-tunes `n_shadows` models, each on half of members and non-members and on all retain rows.

    Returns:
        [`~hf_unlearn.audit.privacy.Shadows`].
    """
    tokenizer = prepared.tokenizer
    from . import train_shadows

    settings = {
        name: value for name, value in vars(args).items() if name.startswith("shadow_") and name != "shadow_dir"
    }
    return train_shadows(
        lambda rows, seed: finetune(args, tokenizer, rows, seed),
        [*prepared.rows["forget"], *prepared.rows["nonmember"]],
        folder=args.shadow_dir or Path(args.output_dir) / "shadows",
        n_shadows=args.n_shadows,
        background=prepared.rows["retain"] or (),
        seed=args.seed,
        note=json.dumps(settings | {"max_length": args.max_length}, sort_keys=True),
        processing_class=tokenizer,
        max_length=args.max_length,
        batch_size=args.audit_batch_size,
        qa=prepared.qa,
    )


def finetune(args: PrivacyArguments, tokenizer, rows: list, seed: int):
    """A model fine-tuned on rows; nothing of it is kept on disk."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
    from transformers.utils import logging as transformers_logging

    from ...data.benchmarks import resolve_model
    from ...families.choose import family_of
    from ..checkpoints import checkpoint_of

    set_seed(seed)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    model = checkpoint_of(resolve_model(args.shadow_model_name_or_path), args.trust_remote_code, **args.loading())
    family = family_of(model)
    encoded = family.encode(Dataset.from_list(rows), tokenizer, args.max_length, "shadow")
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            num_train_epochs=args.shadow_epochs,
            learning_rate=args.shadow_learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=args.shadow_batch_size,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
        )
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=encoded,
            data_collator=family.collator(tokenizer, (), args.max_length),
        )
        # The bar of shadow models is enough.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()
