"""tpustream streams tokens from decoder language models on TPU, GPU and CPU."""

__version__ = "0.1.0"
