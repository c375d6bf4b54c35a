# SPDX-License-Identifier: Apache-2.0
"""Every causal architecture of transformers, made small by the names that configs give their sizes."""

import torch


VOCAB = 100
# What configs call their sizes; only names that a config has are set.
SIZES = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim_model", "word_embed_proj_dim", "embedding_size",
                     "attention_hidden_size", "lru_width"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads",
                     "encoder_attention_heads", "num_key_value_heads", "num_kv_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank", "mamba_d_head",
                     "mamba_head_dim", "chunk_size", "mamba_chunk_size", "moe_intermediate_size",
                     "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 8),
    **dict.fromkeys(("rotary_dim", "qk_nope_head_dim", "qk_rope_head_dim", "num_experts", "num_local_experts",
                     "n_routed_experts", "moe_num_experts", "state_size", "mamba_d_state", "mamba_n_heads",
                     "mamba_num_heads", "mamba_dt_rank", "time_step_rank", "ssm_state_size", "n_rot"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_inner", "dff",
                     "dim_ff", "ffn_hidden_size"), 24),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "mamba_expand"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups",
                     "n_groups"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 64),
    "layer_types": None, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
# Where these do not go together.
OWN = {
    "axk1": {"head_dim": 4},
    "deepseek_v3": {"head_dim": 4},
    "youtu": {"head_dim": 4},
    "codegen": {"n_head": 4, "head_dim": None, "rotary_dim": 2},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 2, "num_layers": 3},
    "mamba2": {"num_heads": 4, "head_dim": 8},
    # With a projection around the layers, as OPT-350M has.
    "opt-350m": {"word_embed_proj_dim": 8},
}  # fmt: skip
DECODERS = ("bert", "roberta", "electra")


def small(name: str, dropout: float = 0.1, **changes):
    """A model of some thousand parameters, all of its dropout on, with weights that let predictions differ.

    Args:
        name (`str`): a model type of transformers, or one with a suffix of [`OWN`]; of `-decoder` it is causal.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = name.removesuffix("-decoder").removesuffix("-350m")
    kind = plain if plain in (*DECODERS, "opt") else name
    base = AutoConfig.for_model(kind)
    fields = {field for field in dir(base) if not isinstance(getattr(type(base), field, None), property)}
    found = {field: value for field, value in SIZES.items() if field in fields | {"tie_word_embeddings"}}
    chances = {field: dropout for field in fields if "drop" in field and isinstance(getattr(base, field), float)}
    own = {"is_decoder": True} if kind != name and kind in DECODERS else {}
    found = {**found, **chances, **own, **OWN.get(name, {}), **changes}
    found = {field: value for field, value in found.items() if value is not None or field == "layer_types"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **found))
    with torch.no_grad():
        # Initial weights are so small that every prediction is close to uniform.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()
