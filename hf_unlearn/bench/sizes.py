# SPDX-License-Identifier: Apache-2.0
"""How large the model and the batch are. Weights are random, so nothing is downloaded."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Size:
    """A Llama, its batch and how it is trained. Every field is an option of `hf-unlearn bench`."""

    hidden_size: int = 512
    intermediate_size: int = 1376
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    vocab_size: int = 16000
    tie_word_embeddings: bool = False
    dtype: str = "float32"  # of the weights; bfloat16 ones are trained with `bf16: true`, as in the recipes
    rows: int = 4  # forget rows a step, and as many retain rows
    row_length: int = 256  # tokens
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    activation_checkpointing: bool = False

    def __post_init__(self):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give at least 1.")
        if self.row_length < 2:
            raise ValueError(f"row_length={self.row_length}; a row of fewer than 2 tokens predicts nothing.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; allowed: 'float32', 'bfloat16'.")
        if self.hidden_size % (2 * self.num_attention_heads) or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size}, num_attention_heads={self.num_attention_heads}, num_key_value_heads="
                f"{self.num_key_value_heads}: heads must have the same even width, and share keys in equal groups."
            )

    def model_config(self) -> dict:
        """Keyword arguments of [`~transformers.LlamaConfig`]."""
        names = [field.name for field in fields(self)][:7]
        config = {name: getattr(self, name) for name in names}
        # Room for the prompts that methods bring with them, too; rotary positions have no weights.
        return config | {"max_position_embeddings": max(self.row_length, 512), "use_cache": False}


PRESETS = {
    # The head is about a quarter of the arithmetic.
    "cpu": Size(),
    # Llama-3.2-1B
    "1b": Size(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
        dtype="bfloat16",
        row_length=512,
    ),
    # Llama-2-7B
    "7b": Size(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        dtype="bfloat16",
        rows=1,
        row_length=2048,
        activation_checkpointing=True,
    ),
}
