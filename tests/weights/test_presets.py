"""configs/: the shipped shapes."""

import pytest

from tpustream.config.presets import preset, preset_names

# published parameter counts; Gemma 3 4B without its vision tower
COUNTS = {
    "smollm2-135m-instruct": 134_515_008,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "gemma-3-270m": 268_098_176,
    "gemma-3-4b": 3_880_263_168,
}


def test_every_shape_has_the_published_size():
    """A typing error in a configuration changes the parameter count."""
    assert {name: preset(name).num_params for name in preset_names()} == COUNTS
    assert all(preset(name).name == name for name in preset_names())


def test_unknown_preset_lists_names():
    """A misspelt name is answered with the names and the nearest one."""
    with pytest.raises(ValueError, match=r"mistral-7b.*did you mean 'qwen3-8b'"):
        preset("qwen-8b")
