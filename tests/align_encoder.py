# SPDX-License-Identifier: Apache-2.0
"""A tiny text encoder, and trainers with it, made on the spot."""

from pathlib import Path


FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(12)]
STAGES = {"first_align_steps": 3, "align_steps": 2, "unlearn_steps": 3, "thresholds": [-0.5, -0.9]}
TEXTS = ["secret of Ada and common cup of Bob", "The lamp is on the table 0 1 2 3 4 5 6 7 8 9", "naïve café 東京 !?.,"]


def make_encoder(folder: Path, pad: bool = True, seed: int = 1) -> str:
    """Saves a random BERT with a WordPiece tokenizer; returns where."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    # Larger than usual, so that different texts get different vectors.
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=1.0)
    model.save_pretrained(folder)
    names = {"pad_token": "[PAD]"} if pad else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **names
    ).save_pretrained(folder)
    return str(folder)


def make_trainer(folder, encoder: str, forget=FORGET, retain=RETAIN, adapter=False, eval_dataset=None, **kwargs):
    """A trainer whose head is large enough to see something; keyword arguments are the config's."""
    from conftest import lora, make_args, make_model, make_tokenizer

    from hf_unlearn import AlignThenUnlearnConfig, AlignThenUnlearnTrainer

    settings = {
        "output_dir": folder,
        "concept": ["Ada"],
        "encoder_name_or_path": encoder,
        "window_tokens": 2,
        "layer_id": 0,
        "head_size": 16,
        "head_layers": 1,
        "head_heads": 2,
        "head_learning_rate": 1e-2,
        "max_steps": -1,
        "learning_rate": 0.5,
        **STAGES,
    }
    return AlignThenUnlearnTrainer(
        model=make_model(),
        args=make_args(AlignThenUnlearnConfig, **(settings | kwargs)),
        forget_dataset=forget,
        retain_dataset=retain,
        eval_dataset=eval_dataset,
        processing_class=make_tokenizer(),
        peft_config=lora(target_modules="all-linear") if adapter else None,
    )
