"""scripts/convert_weights.py: as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.model_specs import FAMILIES, random_params, specs_of
from tpustream.weights import load_params, resolve_model
from tpustream.weights.export import save_safetensors

ROOT = Path(__file__).resolve().parents[2]
CONFIG = FAMILIES["qwen3"]


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder without a tokenizer."""
    params = random_params(CONFIG)
    save_safetensors(tmp_path / "qwen3", CONFIG, specs_of(CONFIG), params.items(), dtype="float32")
    return tmp_path / "qwen3"


def _convert(*flags):
    command = [sys.executable, str(ROOT / "scripts" / "convert_weights.py"), *map(str, flags)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_safetensors_to_orbax(folder, tmp_path):
    """The converted folder holds the same numbers; converting onto it again is refused in one line."""
    out = tmp_path / "orbax" / "qwen3"
    flags = ("--model", folder, "--to", "orbax", "--dtype", "float32", "--out", out)
    done = _convert(*flags)
    assert done.returncode == 0, done.stderr
    files = resolve_model(str(out))
    specs = specs_of(CONFIG)
    assert (files.format, files.config) == ("orbax", CONFIG)
    loaded = load_params(files, specs, dtype=jnp.float32, sharding_of=lambda name: None, progress=False)
    for name, wanted in random_params(CONFIG).items():
        np.testing.assert_array_equal(loaded[name], wanted, err_msg=name)
    again = _convert(*flags)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1].startswith("error: ") and "without a checkpoint" in again.stderr


def test_gguf_output_needs_a_vocabulary(folder, tmp_path):
    """A source without a GGUF vocabulary is told which flag is missing."""
    done = _convert("--model", folder, "--to", "gguf", "--out", tmp_path / "out.gguf")
    assert done.returncode == 1 and "--vocabulary" in done.stderr
    assert not (tmp_path / "out.gguf").exists()
