"""A Hugging Face config.json becomes a ModelConfig, or an error that names the field at fault.

Knows the families of `SUPPORTED` in the form of transformers 4 (rope_theta, rope_scaling,
sliding_window_pattern) and 5 (rope_parameters, layer_types). A config.json may leave out what equals
the default of its transformers class: those defaults are in `_DEFAULTS`. A feature that the decoder
does not have is refused, never dropped.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpustream.config.model import LayerKind, ModelConfig, RopeConfig

_LLAMA = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
_QWEN = {**_LLAMA, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
         "use_sliding_window": False}  # fmt: skip
_GEMMA = {"rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
          "query_pre_attn_scalar": 256, "sliding_window": 4096, "head_dim": 256}  # fmt: skip

# Field defaults of the configuration classes of transformers 5.23. Sizes are left out where every
# published config.json states them; the text part of a multimodal Gemma 3 leaves out more.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "max_position_embeddings": 2048},
    "mistral": {**_LLAMA, "max_position_embeddings": 131072, "num_key_value_heads": 8,
                "sliding_window": 4096},
    "qwen2": {**_QWEN, "num_key_value_heads": 32},
    "qwen3": {**_QWEN, "num_key_value_heads": 32, "head_dim": 128},
    "gemma2": {**_GEMMA, "max_position_embeddings": 8192, "final_logit_softcapping": 30.0,
               "attn_logit_softcapping": 50.0},
    "gemma3_text": {**_GEMMA, "max_position_embeddings": 131072, "vocab_size": 262208,
                    "num_attention_heads": 8, "num_key_value_heads": 4, "rope_theta": 1_000_000.0,
                    "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6},
}  # fmt: skip
SUPPORTED = (*_DEFAULTS, "gemma3")

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_KINDS: dict[str, LayerKind] = {"full_attention": "global", "sliding_attention": "local"}
_REFUSED = ("attention_bias", "mlp_bias", "use_bidirectional_attention")


def model_config_from_hf(data: Mapping[str, Any], name: str) -> ModelConfig:
    """The decoder that a config.json describes.

    Args:
      data: the parsed config.json. Of a multimodal Gemma 3 the text part is taken.
      name: the name of the result.

    Raises:
      ValueError: a model type, feature or RoPE form that is not supported, or a missing field.
    """
    model_type = data.get("model_type")
    if model_type == "gemma3":
        text = {"tie_word_embeddings": data.get("tie_word_embeddings", True), **_field(data, "text_config")}
        return model_config_from_hf({**text, "model_type": "gemma3_text"}, name)
    if model_type not in _DEFAULTS:
        raise ValueError(f"model_type: wanted one of {sorted(SUPPORTED)}, got {model_type!r}")
    for refused in _REFUSED:
        if data.get(refused):
            raise ValueError(f"{refused}: wanted false (not supported for {model_type}), got true")
    fields = {**_DEFAULTS[model_type], **data}
    gemma = model_type.startswith("gemma")
    heads = _field(fields, "num_attention_heads")
    embed = _field(fields, "hidden_size")
    head_dim = fields.get("head_dim") or embed // heads
    rope, local_rope = _rotations(fields, data)
    window, kinds = _layers(fields)
    scalar = fields.get("query_pre_attn_scalar")
    return ModelConfig(
        name=name,
        num_layers=_field(fields, "num_hidden_layers"),
        embed_dim=embed,
        ffw_dim=_field(fields, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        vocab_size=_field(fields, "vocab_size"),
        context_length=_field(fields, "max_position_embeddings"),
        norm_eps=float(fields["rms_norm_eps"]),
        activation=_activation(fields, gemma),
        tie_embeddings=bool(fields["tie_word_embeddings"]),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        embed_scale=math.sqrt(embed) if gemma else 1.0,
        attn_scale=None if not gemma or scalar == head_dim else scalar**-0.5,
        attn_softcap=fields.get("attn_logit_softcapping") if gemma else None,
        final_softcap=fields.get("final_logit_softcapping") if gemma else None,
        rope=rope,
        local_rope=local_rope,
        window=window,
        layer_pattern=shortest_period(kinds),
    )


def shortest_period(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest beginning of `kinds` that, repeated, gives `kinds` (the last round may be cut)."""
    for period in range(1, len(kinds)):
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds)):
            return tuple(kinds[:period])
    return tuple(kinds)


def _field(data: Mapping[str, Any], key: str) -> Any:
    if data.get(key) is None:
        raise ValueError(f"{key}: wanted a value for model_type {data.get('model_type')!r}, got none")
    return data[key]


def _activation(fields: Mapping[str, Any], gemma: bool) -> str:
    key = "hidden_activation" if gemma else "hidden_act"
    value = fields[key] or "gelu_pytorch_tanh"  # early Gemma files say null
    if value not in _ACTIVATIONS:
        raise ValueError(f"{key}: wanted one of {sorted(_ACTIVATIONS)}, got {value!r}")
    return _ACTIVATIONS[value]


def _layers(fields: Mapping[str, Any]) -> tuple[int | None, list[LayerKind]]:
    """The window of local layers (None without such layers) and the kind of every layer."""
    model_type, count = fields["model_type"], _field(fields, "num_hidden_layers")
    window = fields.get("sliding_window")
    if model_type == "llama" or (model_type.startswith("qwen") and not fields["use_sliding_window"]):
        window = None
    kinds: list[LayerKind]
    if window is None:
        kinds = ["global"] * count
    elif model_type == "mistral":
        kinds = ["local"] * count
    elif model_type == "gemma2":
        kinds = ["global" if index % 2 else "local" for index in range(count)]
    elif model_type == "gemma3_text":
        period = fields["sliding_window_pattern"]
        kinds = ["local" if (index + 1) % period else "global" for index in range(count)]
    else:
        kinds = ["local" if index >= fields["max_window_layers"] else "global" for index in range(count)]
    stated = fields.get("layer_types")
    if stated is not None:
        kinds = [_layer_kind(text) for text in stated]
        if len(kinds) != count:
            raise ValueError(f"layer_types: wanted {count} entries (num_hidden_layers), got {len(kinds)}")
        if "local" in kinds and window is None:
            raise ValueError(
                "sliding_window: wanted an integer for the sliding layers of layer_types, got none"
            )
    return (window if "local" in kinds else None), kinds


def _layer_kind(text: str) -> LayerKind:
    if text not in _LAYER_KINDS:
        raise ValueError(f"layer_types: wanted some of {sorted(_LAYER_KINDS)}, got {text!r}")
    return _LAYER_KINDS[text]


def _rotations(fields: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[RopeConfig, RopeConfig | None]:
    """Rotation of global layers, and of local layers where they have their own (Gemma 3)."""
    context = _field(fields, "max_position_embeddings")
    partial = data.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor: wanted 1, got {partial}")
    base = fields.get("rope_theta") or 10_000.0
    stated = data.get("rope_parameters") or {}
    nested = any(isinstance(value, Mapping) for value in stated.values())
    if fields["model_type"] != "gemma3_text":
        if nested:
            raise ValueError(f"rope_parameters: wanted one rotation for all layers, got {stated!r}")
        return _rotation(stated or data.get("rope_scaling") or {}, base, context), None
    if stated and not nested:
        raise ValueError(f"rope_parameters: wanted full_attention and sliding_attention, got {stated!r}")
    scaled = stated.get("full_attention") or data.get("rope_scaling") or {}
    local_base = fields["rope_local_base_freq"]
    local = _rotation(stated.get("sliding_attention") or {}, local_base, context)
    return _rotation(scaled, base, context), local


def _rotation(stated: Mapping[str, Any], base: float, context: int) -> RopeConfig:
    """One rotation from a rope_parameters or rope_scaling entry; `base` where it states none."""
    kind = stated.get("rope_type", stated.get("type", "default"))
    base = float(stated.get("rope_theta") or base)
    if stated.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor: wanted 1, got {stated['partial_rotary_factor']}")
    original = int(stated.get("original_max_position_embeddings") or context)
    if kind == "default":
        return RopeConfig(base=base)
    if kind == "linear":
        return RopeConfig(base=base, kind="linear", factor=float(_rope_field(stated, "factor")))
    if kind == "llama3":
        return RopeConfig(
            base=base,
            kind="llama3",
            factor=float(_rope_field(stated, "factor")),
            original_context=original,
            low_freq_factor=float(_rope_field(stated, "low_freq_factor")),
            high_freq_factor=float(_rope_field(stated, "high_freq_factor")),
        )
    if kind == "yarn":
        factor = float(stated.get("factor") or context / original)
        return RopeConfig(
            base=base,
            kind="yarn",
            factor=factor,
            original_context=original,
            beta_fast=float(stated.get("beta_fast") or 32.0),
            beta_slow=float(stated.get("beta_slow") or 1.0),
            attention_factor=_yarn_attention_factor(stated, factor),
            truncate=bool(stated.get("truncate", True)),
        )
    raise ValueError(f"rope_type: wanted one of ['default', 'linear', 'llama3', 'yarn'], got {kind!r}")


def _yarn_attention_factor(stated: Mapping[str, Any], factor: float) -> float | None:
    """None where the formula of `RopeConfig.magnitude` holds; DeepSeek's mscale pair else."""
    if stated.get("attention_factor") is not None:
        return float(stated["attention_factor"])
    above, below = stated.get("mscale"), stated.get("mscale_all_dim")
    if not (above and below):
        return None
    growth = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (above * growth + 1.0) / (below * growth + 1.0)


def _rope_field(stated: Mapping[str, Any], key: str) -> Any:
    if stated.get(key) is None:
        raise ValueError(f"rope {key}: wanted a value for rope_type {stated.get('rope_type')!r}, got none")
    return stated[key]
