"""A whole causal forward in float64 for every supported family, from Hugging Face names and config.

It reads the config.json that transformers 5 writes (`rope_parameters`, `layer_types`).
"""

import math
from typing import Any

import numpy as np

from tests.reference.rope import frequencies, rotate

Weights = dict[str, np.ndarray]


def logits(weights: Weights, config: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits of every position, f64[T, V]; arguments as of `hidden_states`."""
    table = weights["model.embed_tokens.weight"]
    out = hidden_states(weights, config, tokens) @ weights.get("lm_head.weight", table).astype(np.float64).T
    return _softcap(out, config.get("final_logit_softcapping"))


def hidden_states(weights: Weights, config: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """What the head reads, after the final norm, f64[T, D].

    Args:
      weights: Hugging Face names -> arrays, projections as [out, in].
      config: the parsed config.json.
      tokens: [T] ids.
    """
    gemma = _is_gemma(config)
    table = weights["model.embed_tokens.weight"]
    hidden = table[tokens].astype(np.float64)
    if gemma:
        hidden *= math.sqrt(config["hidden_size"])
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}."
        # In the Gemma families this name is the norm after attention, elsewhere the one before the MLP.
        middle = f"{part}post_attention_layernorm.weight"
        update = _attention(
            weights, config, layer, _norm(hidden, weights[f"{part}input_layernorm.weight"], config)
        )
        hidden = hidden + (_norm(update, weights[middle], config) if gemma else update)
        before = f"{part}pre_feedforward_layernorm.weight" if gemma else middle
        update = _feed_forward(weights, config, layer, _norm(hidden, weights[before], config))
        if gemma:
            update = _norm(update, weights[f"{part}post_feedforward_layernorm.weight"], config)
        hidden = hidden + update
    return _norm(hidden, weights["model.norm.weight"], config)


def _attention(weights: Weights, config: dict[str, Any], layer: int, inputs: np.ndarray) -> np.ndarray:
    """[T, D] -> [T, D]."""
    length = len(inputs)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    part = f"model.layers.{layer}.self_attn."

    def project(name: str, count: int) -> np.ndarray:
        out = inputs @ weights[f"{part}{name}_proj.weight"].astype(np.float64).T
        out = out + weights.get(f"{part}{name}_proj.bias", 0.0)
        return out.reshape(length, count, head_dim)

    query, key, value = project("q", heads), project("k", kv_heads), project("v", kv_heads)
    if f"{part}q_norm.weight" in weights:
        query = _norm(query, weights[f"{part}q_norm.weight"], config)
        key = _norm(key, weights[f"{part}k_norm.weight"], config)
    per_position, magnitude = frequencies(_rope(config, layer), head_dim)
    angles = np.arange(length)[:, None, None] * per_position
    query, key = rotate(query, angles, magnitude), rotate(key, angles, magnitude)
    scale = (config["query_pre_attn_scalar"] if _is_gemma(config) else head_dim) ** -0.5
    window = config["sliding_window"] if _is_local(config, layer) else length
    out = np.zeros((length, heads, head_dim))
    for position in range(length):
        seen = slice(max(0, position - window + 1), position + 1)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = key[seen, group] @ query[position, head] * scale
            scores = _softcap(scores, config.get("attn_logit_softcapping"))
            chances = np.exp(scores - scores.max())
            out[position, head] = (chances / chances.sum()) @ value[seen, group]
    return out.reshape(length, -1) @ weights[f"{part}o_proj.weight"].astype(np.float64).T


def _feed_forward(weights: Weights, config: dict[str, Any], layer: int, inputs: np.ndarray) -> np.ndarray:
    """Gated feed-forward (Shazeer 2020): [T, D] -> [T, D]."""
    gate, up, down = (
        weights[f"model.layers.{layer}.mlp.{name}_proj.weight"].astype(np.float64)
        for name in ("gate", "up", "down")
    )
    gated = inputs @ gate.T
    if _is_gemma(config):
        gated = 0.5 * gated * (1 + np.tanh(math.sqrt(2 / math.pi) * (gated + 0.044715 * gated**3)))
    else:
        gated = gated / (1 + np.exp(-gated))
    return (gated * (inputs @ up.T)) @ down.T


def _norm(inputs: np.ndarray, weight: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """RMSNorm over the last axis (Zhang and Sennrich 2019)."""
    root = np.sqrt((inputs**2).mean(axis=-1, keepdims=True) + config["rms_norm_eps"])
    return inputs / root * (weight.astype(np.float64) + (1.0 if _is_gemma(config) else 0.0))


def _softcap(values: np.ndarray, cap: float | None) -> np.ndarray:
    return values if cap is None else cap * np.tanh(values / cap)


def _is_gemma(config: dict[str, Any]) -> bool:
    return config["model_type"].startswith("gemma")


def _is_local(config: dict[str, Any], layer: int) -> bool:
    if "layer_types" in config:
        return config["layer_types"][layer] == "sliding_attention"
    # Mistral: all layers or none.
    return config.get("sliding_window") is not None


def _rope(config: dict[str, Any], layer: int) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return rope[config["layer_types"][layer]] if "full_attention" in rope else rope
