"""GGUF files: metadata to ModelConfig lives in gguf_config; here are the tensors, dequantized.

Tensors are returned in Hugging Face's row order: llama-architecture files hold query and key rows
permuted for the interleaved rotation, and that is undone here. Norms are multipliers already.
"""

from pathlib import Path

import gguf
import numpy as np

from tpustream.config import ModelConfig
from tpustream.core.errors import ModelError
from tpustream.weights.gguf_reader import QuickReader
from tpustream.weights.source import Index

# names as in gguf.GGMLQuantizationType
QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_BLOCK_ELEMENTS = 1 << 17
ROPE_FACTORS = "rope_freqs.weight"  # part of the configuration, see gguf_config


class GGUFSource:
    """A TensorSource over one GGUF file. Raises ModelError for a quantization it cannot read."""

    def __init__(self, path: Path, config: ModelConfig):
        reader = QuickReader(path)
        self.where = str(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name != ROPE_FACTORS}
        for tensor in self._tensors.values():
            if tensor.tensor_type.name not in QUANTIZATIONS:
                raise ModelError(
                    f"{path}: {tensor.name}: wanted a quantization among {list(QUANTIZATIONS)}, "
                    f"got {tensor.tensor_type.name}"
                )
        # the format counts dimensions innermost first
        self.shapes = {
            name: tuple(int(size) for size in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self._heads = {}
        if reader.value("general.architecture") == "llama":
            self._heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}

    def read(self, name: str, index: Index) -> np.ndarray:
        """Part `index` of tensor `name` as float32. Rows that are not asked for are not dequantized."""
        tensor = self._tensors[name]
        permuted = self._heads.get(name.split(".")[-2])
        if permuted is not None:
            return unpermute_rows(_dequantize(tensor, slice(None)), permuted)[index]
        return _dequantize(tensor, index[0])[(slice(None), *index[1:])]


def unpermute_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved rotation order -> half-split order, per head.

    The inverse of LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py, which lays the two halves of
    a head's rows side by side: row 2i of a head is row i, row 2i + 1 is row H/2 + i.

    Args:
      rows: [heads * H, in].
      heads: number of heads.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def permute_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `unpermute_rows`. `rows` is [heads * H, in]."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _dequantize(tensor: gguf.ReaderTensor, rows: slice) -> np.ndarray:
    """The chosen rows as float32, a block at a time: its temporaries then stay in the processor's cache."""
    stored = tensor.data[rows]
    width = int(tensor.shape[0])
    out = np.empty((*stored.shape[:-1], width), np.float32)
    if stored.ndim == 1:
        out[:] = gguf.quants.dequantize(stored, tensor.tensor_type)
        return out
    step = max(1, _BLOCK_ELEMENTS // width)
    for start in range(0, len(stored), step):
        block = slice(start, start + step)
        out[block] = gguf.quants.dequantize(stored[block], tensor.tensor_type)
    return out
