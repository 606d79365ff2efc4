"""What a model is and how the engine is laid out: frozen dataclasses, no arrays, no jax."""

from tpustream.config.engine import EngineConfig
from tpustream.config.model import ModelConfig, RopeConfig

__all__ = ["EngineConfig", "ModelConfig", "RopeConfig"]
