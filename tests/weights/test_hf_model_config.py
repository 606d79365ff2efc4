"""config/hf.py: Hugging Face configurations, and weights/hf_config.py, their inverse."""

import dataclasses

import pytest

from tpustream.config import RopeConfig, hf
from tpustream.config.hf import model_config_from_hf, shortest_period
from tpustream.config.presets import preset, preset_names
from tpustream.core.errors import ModelError
from tpustream.weights.hf_config import hf_config

transformers = pytest.importorskip("transformers")
CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
}
LLAMA = {"model_type": "llama", "vocab_size": 47, "hidden_size": 24, "intermediate_size": 38,
         "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
         "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("model_type", CLASSES)
def test_defaults_are_those_of_transformers(model_type):
    """A field that a config.json leaves out means the same to us as to transformers."""
    stated = CLASSES[model_type]().to_dict()
    rotations = ("rope_theta", "rope_local_base_freq", "sliding_window_pattern")
    for field, value in hf._DEFAULTS[model_type].items():
        if field not in rotations and not (field == "sliding_window" and model_type.startswith("qwen")):
            assert stated[field] == value, field
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2,
             "num_hidden_layers": 7}  # fmt: skip
    whole = CLASSES[model_type](**sizes).to_dict()
    needed = (*sizes, "model_type", "intermediate_size", "vocab_size")
    sparse = {key: whole[key] for key in needed}
    assert model_config_from_hf(sparse, "x") == model_config_from_hf(whole, "x")


def test_rope_of_transformers_4_and_5_agree():
    """Both generations of config.json give one rotation."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
    old = model_config_from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": scaling}, "x")
    new = model_config_from_hf({**LLAMA, "rope_parameters": {**scaling, "rope_theta": 5e5}}, "x")
    assert old == new
    assert old.rope == RopeConfig(base=5e5, kind="llama3", factor=8.0, original_context=8192)


def test_gemma3_per_layer_rope_of_both_generations():
    """Gemma 3's two rotations come from nested or from flat fields."""
    sizes = {**LLAMA, "model_type": "gemma3_text"}
    linear = {"factor": 8.0, "rope_type": "linear"}
    old = model_config_from_hf({**sizes, "rope_scaling": linear, "rope_local_base_freq": 5e3}, "x")
    nested = {"full_attention": {**linear, "rope_theta": 1e6},
              "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}  # fmt: skip
    new = model_config_from_hf({**sizes, "rope_parameters": nested}, "x")
    assert old == new
    assert (old.rope.base, old.rope.kind, old.local_rope.base) == (1e6, "linear", 5e3)


def test_multimodal_gemma3_text_part():
    """The published gemma-3-4b config.json, whose text part states seven fields, is our preset."""
    published = {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    assert model_config_from_hf(published, "gemma-3-4b") == preset("gemma-3-4b")


def test_yarn_fields():
    """YaRN's optional fields arrive, and a missing factor is the stretch of the context."""
    yarn = {"type": "yarn", "original_max_position_embeddings": 16, "beta_fast": 24, "truncate": False}
    rope = model_config_from_hf({**LLAMA, "rope_scaling": yarn}, "x").rope
    assert rope == RopeConfig(kind="yarn", factor=4.0, original_context=16, beta_fast=24.0, truncate=False)
    paired = {**yarn, "mscale": 2.0, "mscale_all_dim": 1.0}
    magnitude = model_config_from_hf({**LLAMA, "rope_scaling": paired}, "x").rope.magnitude
    assert magnitude == pytest.approx(1.2772589 / 1.1386294)


def test_sliding_layers():
    """Windows are taken where the family uses them, and only there."""
    qwen = {**LLAMA, "model_type": "qwen2", "sliding_window": 5, "max_window_layers": 1}
    assert model_config_from_hf(qwen, "x").window is None
    used = model_config_from_hf({**qwen, "use_sliding_window": True}, "x")
    assert (used.window, used.layer_pattern) == (5, ("global", "local", "local"))
    mistral = {**LLAMA, "model_type": "mistral"}
    assert model_config_from_hf(mistral, "x").window == 4096
    assert model_config_from_hf({**mistral, "sliding_window": None}, "x").window is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "model_type: wanted one of .*'qwen3'.*got 'mamba'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "hidden_act.*relu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type.*dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"layer_types": ["full_attention"]}, "layer_types: wanted 3"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window"),
    ],
)
def test_refusals_name_the_field(change, named):
    """What the decoder cannot do is an error, never dropped."""
    with pytest.raises(ValueError, match=named):
        model_config_from_hf({**LLAMA, **change}, "x")


@pytest.mark.parametrize("name", preset_names())
def test_written_config_reads_back(name):
    """hf_config is the inverse for every shipped shape, in our reader and in transformers' classes."""
    config = preset(name)
    written = hf_config(config, dtype="bfloat16")
    read = CLASSES[written["model_type"]].from_dict(written)
    assert model_config_from_hf(read.to_dict(), name) == config


def test_inexpressible_shape_names_the_field():
    """A shape outside the families is refused when it is written."""
    odd = dataclasses.replace(preset("llama-3.2-1b"), embed_scale=2.0)
    with pytest.raises(ModelError, match="embed_scale"):
        hf_config(odd, dtype="float32")


def test_shortest_period():
    """Repeating patterns are found although the last round is cut."""
    assert shortest_period(["local", "global", "local"]) == ("local", "global")
    assert shortest_period(["global"] * 4) == ("global",)
