"""Model files become parameters on devices: GGUF, Hugging Face safetensors, Orbax, random weights."""

from tpustream.weights.load import load_params
from tpustream.weights.resolve import DEFAULT_MODEL, ModelFiles, resolve_model

__all__ = ["DEFAULT_MODEL", "ModelFiles", "load_params", "resolve_model"]
