"""The tiny models of make_families.py: one config a family, sizes that no transposition survives.

Within a family the sizes D, N*H, K*H, F, V and H differ from each other, mostly by odd factors.
Windows and original contexts are far below the golden sequences' lengths, so that a wrong window or
a missing rope scaling changes the logits. LEGACY is what transformers 4 wrote instead.
"""

from typing import Any

_SHARED = {"dtype": "float32", "rms_norm_eps": 1e-5, "max_position_embeddings": 256}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}


def _sizes(layers: int, embed: int, ffw: int, heads: int, kv_heads: int, vocab: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": embed,
        "intermediate_size": ffw,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        **_sizes(3, 52, 97, 4, 2, 101),
        "head_dim": 14,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "llama3_rope": {
        "model_type": "llama",
        **_sizes(3, 66, 89, 6, 2, 103),
        "head_dim": 18,
        "tie_word_embeddings": True,
        "rope_parameters": {**_LLAMA3_ROPE, "rope_theta": 500.0},
    },
    "llama_linear": {
        "model_type": "llama",
        **_sizes(3, 50, 83, 5, 1, 107),
        "head_dim": 12,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0},
    },
    "llama_yarn": {
        "model_type": "llama",
        **_sizes(3, 69, 79, 3, 3, 109),
        "head_dim": 16,
        "rope_parameters": {**_YARN_ROPE, "rope_theta": 1000.0},
    },
    "llama_yarn_exact": {
        "model_type": "llama",
        **_sizes(3, 62, 53, 2, 1, 113),
        "head_dim": 20,
        "rope_parameters": {
            **_YARN_ROPE,
            "rope_theta": 700.0,
            "beta_fast": 5.0,
            "attention_factor": 1.3,
            "truncate": False,
        },
    },
    "smollm2": {
        "model_type": "llama",
        **_sizes(4, 72, 101, 9, 3, 127),
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "mistral_window": {
        "model_type": "mistral",
        **_sizes(3, 56, 73, 8, 4, 101),
        "head_dim": 10,
        "sliding_window": 7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
    "qwen2": {
        "model_type": "qwen2",
        **_sizes(3, 60, 71, 6, 2, 103),
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0},
    },
    "qwen2_window": {
        "model_type": "qwen2",
        **_sizes(5, 56, 67, 4, 2, 107),
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0},
    },
    "qwen3": {
        "model_type": "qwen3",
        **_sizes(3, 54, 61, 6, 3, 109),
        "head_dim": 14,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30_000.0},
    },
    "gemma2": {
        "model_type": "gemma2",
        **_sizes(4, 44, 59, 4, 2, 101),
        "head_dim": 12,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
        "sliding_window": 7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0},
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        **_sizes(6, 46, 57, 2, 1, 103),
        "head_dim": 16,
        "query_pre_attn_scalar": 5,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
        },
    },
}
CONFIGS = {name: {**_SHARED, **config} for name, config in CONFIGS.items()}

_NEW_KEYS = ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype")

# family -> (further keys that go, keys that come). Some of what comes has no effect in transformers
# and must have none elsewhere: a window that is not used, a null rope_scaling.
LEGACY: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "llama": ((), {"rope_theta": 10_000.0, "rope_scaling": None}),
    "llama3_rope": ((), {"rope_theta": 500.0, "rope_scaling": _LLAMA3_ROPE}),
    "llama_linear": ((), {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    "llama_yarn": ((), {"rope_theta": 1000.0, "rope_scaling": _YARN_ROPE}),
    "smollm2": (("head_dim",), {"rope_theta": 100_000.0, "rope_scaling": None, "rope_interleaved": False}),
    "mistral_window": ((), {"rope_theta": 5000.0}),
    "qwen2": (
        ("use_sliding_window", "sliding_window", "max_window_layers"),
        {"rope_theta": 20_000.0, "use_sliding_window": False, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen2_window": ((), {"rope_theta": 20_000.0, "rope_scaling": None}),
    "qwen3": ((), {"rope_theta": 30_000.0, "rope_scaling": None}),
    "gemma2": ((), {"rope_theta": 2000.0, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma3_text": (
        (),
        {
            "rope_theta": 5000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
        },
    ),
}


def legacy_config(name: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json of transformers 4 for a family, from that of transformers 5; None for none."""
    if name not in LEGACY:
        return None
    gone, come = LEGACY[name]
    kept = {key: value for key, value in config.items() if key not in _NEW_KEYS + gone}
    return kept | come | {"torch_dtype": config["dtype"], "transformers_version": "4.51.0"}
