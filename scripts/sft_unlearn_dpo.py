# SPDX-License-Identifier: Apache-2.0
"""Three trainers in a row: teach rows (SFT), unlearn the rejected answers among them (NPO), prefer the chosen (DPO).

    python scripts/sft_unlearn_dpo.py --model_name_or_path MODEL --output_dir out --use_peft true --retain_loss nll \
        --dataset_name rows.jsonl --preference_dataset preferences.jsonl

Rows have `prompt` and `completion`, preferences `prompt`, `chosen` and `rejected`. With `--use_peft true` one adapter
goes from trainer to trainer in memory; without it every stage trains full weights and saves them, and the next loads
them from there. Results are in `out/sft`, `out/npo` and `out/dpo`. The fields are those of `NPOConfig`, of TRL's
`ScriptArguments` and `ModelConfig`, and the five below.
"""

import json
from dataclasses import dataclass, field

from datasets import concatenate_datasets
from transformers import AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from hf_unlearn import NPOConfig, NPOTrainer, split_forget_retain
from hf_unlearn.data.sources import load_rows


# Settings that NPO's config gives to all three stages.
SHARED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "bf16", "use_cpu", "seed",
    "logging_steps", "save_strategy", "report_to", "disable_tqdm",
)  # fmt: skip


@dataclass
class StageArguments:
    preference_dataset: str = field(metadata={"help": "File, folder or Hub id of the preferences."})
    sft_epochs: float = field(default=3.0, metadata={"help": "Epochs of SFT."})
    sft_learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate of SFT."})
    dpo_epochs: float = field(default=1.0, metadata={"help": "Epochs of DPO."})
    dpo_learning_rate: float = field(default=1e-5, metadata={"help": "Learning rate of DPO."})


def main(argv: list[str] | None = None) -> None:
    parser = TrlParser((ScriptArguments, StageArguments, NPOConfig, ModelConfig))
    script, stages, npo, model_args = parser.parse_args_and_config(argv)
    root, shared = npo.output_dir, {name: getattr(npo, name) for name in SHARED}
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)

    rows = load_rows(script.dataset_name, script.dataset_config, script.dataset_train_split)
    preferences = load_rows(stages.preference_dataset)
    forget, chosen = split_forget_retain(preferences)
    retain = concatenate_datasets([chosen, without(rows, forget)])

    def train(trainer_class, model, args, **given):
        """One stage. Returns what the next one starts from: the model with its adapter, or a path."""
        if isinstance(model, str):
            args.model_init_kwargs = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation}
            given["quantization_config"] = get_quantization_config(model_args)
        trainer = trainer_class(model=model, args=args, processing_class=tokenizer, **given)
        trainer.train()
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        return trainer.model if model_args.use_peft else args.output_dir

    args = SFTConfig(
        f"{root}/sft", num_train_epochs=stages.sft_epochs, learning_rate=stages.sft_learning_rate, **shared
    )
    peft_config = get_peft_config(model_args)
    model = train(SFTTrainer, model_args.model_name_or_path, args, train_dataset=rows, peft_config=peft_config)

    npo.output_dir = f"{root}/npo"
    model = train(NPOTrainer, model, npo, forget_dataset=forget, retain_dataset=retain)

    args = DPOConfig(
        f"{root}/dpo",
        num_train_epochs=stages.dpo_epochs,
        learning_rate=stages.dpo_learning_rate,
        # Without the second term DPO is content with rejected answers that fall faster than the chosen ones.
        loss_type=["sigmoid", "sft"],
        **shared,
    )
    train(DPOTrainer, model, args, train_dataset=preferences)


def without(rows, gone):
    """Those of `rows` that are not among `gone`."""
    known = {_key(row) for row in gone}
    return rows.filter(lambda row: _key(row) not in known).select_columns(["prompt", "completion"])


def _key(row: dict) -> str:
    return json.dumps([row["prompt"], row["completion"]], sort_keys=True)


if __name__ == "__main__":
    main()
