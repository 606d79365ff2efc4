"""A ModelConfig becomes a Hugging Face config.json: the inverse of config/hf.py.

Written in the fields of transformers 4, which version 5 reads too.
"""

import dataclasses
from typing import Any

from tpustream.config import ModelConfig, RopeConfig
from tpustream.config.hf import model_config_from_hf
from tpustream.core.errors import ModelError
from tpustream.weights.names import family

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
_LAYER_TYPES = {"global": "full_attention", "local": "sliding_attention"}


def hf_config(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json, as a dict, of weights stored as `dtype` ("float32" or "bfloat16").

    Raises ModelError for a shape that no supported family of transformers has.
    """
    model_type = family(config)
    out: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffw_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": _ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope.base,
        **_rope_scaling(config.rope),
    }
    layer_types = [_LAYER_TYPES[config.layer_kind(layer)] for layer in range(config.num_layers)]
    if model_type == "mistral":
        out["sliding_window"] = config.window
    if model_type.startswith("qwen"):
        out["use_sliding_window"] = config.window is not None
        out["sliding_window"] = config.window
        out["layer_types"] = layer_types
    if model_type.startswith("gemma"):
        out["hidden_activation"] = out["hidden_act"]
        out["query_pre_attn_scalar"] = _scalar(config)
        out["sliding_window"] = config.window
        out["layer_types"] = layer_types
        out["attn_logit_softcapping"] = config.attn_softcap
        out["final_logit_softcapping"] = config.final_softcap
    if config.local_rope is not None:
        out["rope_local_base_freq"] = config.local_rope.base
    check_read_back(f"Hugging Face's {model_type}", config, model_config_from_hf(out, config.name))
    return out


def _scalar(config: ModelConfig) -> float:
    """query_pre_attn_scalar, a whole number in every published model."""
    scalar = config.score_scale**-2
    return round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar


def _rope_scaling(rope: RopeConfig) -> dict[str, Any]:
    if rope.kind == "plain":
        return {}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        scaling["low_freq_factor"] = rope.low_freq_factor
        scaling["high_freq_factor"] = rope.high_freq_factor
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    if rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_context
    return {"rope_scaling": scaling}


def check_read_back(written: str, wanted: ModelConfig, back: ModelConfig) -> None:
    """Raise ModelError, naming the first field that differs, unless a written model reads back the same.

    Args:
      written: the form that was written, for the message.
      wanted: what was written.
      back: what was read.
    """
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(back, field.name)
        if ours != theirs:
            raise ModelError(f"{wanted.name}: {field.name}: wanted what {written} can express, got {ours}")
