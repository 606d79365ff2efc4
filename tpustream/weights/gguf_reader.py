"""GGUFReader of the gguf package, made quick to open and plain about broken files.

The package's reader makes a numpy view of every string of the vocabulary (8 s for 262,144 tokens). The
loader needs no vocabulary: arrays of strings are stepped over, arrays of numbers become one view.
"""

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tpustream.core.errors import ModelError


class QuickReader(gguf.GGUFReader):
    """A GGUFReader whose string arrays read as empty, and whose errors are ModelErrors."""

    def __init__(self, path: Path):
        """Open `path`. Raises ModelError for a file that is not GGUF, broken or cut short."""
        self._path = path
        if not path.is_file():
            raise ModelError(f"{path}: wanted a GGUF file, got none")
        size = path.stat().st_size
        if size < 24:  # magic, version and two counts
            raise ModelError(f"{path}: truncated GGUF file: wanted at least 24 bytes, got {size}")
        try:
            super().__init__(path)
        except ModelError:
            raise
        except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: wanted a readable GGUF file, got: {error}") from error

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata entry `key` as a plain value; `default` where the file has none."""
        field = self.get_field(key)
        if field is None:
            return default
        content = field.contents()
        if field.types[-1] != gguf.GGUFValueType.FLOAT32:
            return content
        if isinstance(content, list):
            return [shortest_float(item) for item in content]
        return shortest_float(content)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        wanted = offset + int(count) * np.dtype(dtype).itemsize
        if wanted > len(self.data):
            raise ModelError(
                f"{self._path}: truncated GGUF file: wanted at least {wanted} bytes, got {len(self.data)}"
            )
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if gguf.GGUFValueType(raw_type) != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        raw_item = self._get(orig_offs, np.uint32)
        count = self._get(orig_offs + 4, np.uint64)
        item = gguf.GGUFValueType(raw_item[0])
        start = orig_offs + 12
        types = [gguf.GGUFValueType.ARRAY, item]
        if item == gguf.GGUFValueType.STRING:
            return self._end_of_strings(start, int(count[0])) - orig_offs, [raw_item, count], [], types
        if item not in self.gguf_scalar_to_np:
            return super()._get_field_parts(orig_offs, raw_type)
        values = self._get(start, self.gguf_scalar_to_np[item], int(count[0]))
        return start - orig_offs + values.nbytes, [raw_item, count, values], [2], types

    def _end_of_strings(self, offset: int, count: int) -> int:
        length = struct.Struct(">Q" if self.byte_order == "S" else "<Q")
        buffer = memoryview(self.data)
        try:
            for _ in range(count):
                offset += 8 + length.unpack_from(buffer, offset)[0]
        except struct.error as error:
            raise ModelError(
                f"{self._path}: truncated GGUF file: wanted at least {offset + 8} bytes, got {len(buffer)}"
            ) from error
        return offset


def shortest_float(value: float) -> float:
    """The shortest decimal that is the same float32, so that 1e-5 reads as 1e-5."""
    return float(str(np.float32(value))) if math.isfinite(value) else value
