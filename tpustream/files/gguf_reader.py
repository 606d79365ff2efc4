"""GGUFReader of the gguf package, made quick to open and plain about broken files.

The package's reader makes a numpy view of every string of the vocabulary (8 s for 262,144 tokens).
Here arrays of strings are stepped over and read when asked for, arrays of numbers become one view.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tpustream.core.errors import ModelError

_STRINGS = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]


class QuickReader(gguf.GGUFReader):
    """A GGUFReader that is read with `value`, and whose errors are ModelErrors."""

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
        if field.types == _STRINGS:
            count, start = (int(part[0]) for part in field.parts[-2:])
            return list(self._strings(start, count))
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
            size = self._end_of_strings(start, int(count[0])) - orig_offs
            return size, [raw_item, count, np.array([start])], [], types
        if item not in self.gguf_scalar_to_np:
            return super()._get_field_parts(orig_offs, raw_type)
        values = self._get(start, self.gguf_scalar_to_np[item], int(count[0]))
        return start - orig_offs + values.nbytes, [raw_item, count, values], [2], types

    def _end_of_strings(self, offset: int, count: int) -> int:
        """The offset behind `count` strings."""
        for start, size in self._spans(offset, count):
            offset = start + size
        return offset

    def _strings(self, offset: int, count: int) -> Iterator[str]:
        buffer = memoryview(self.data)
        for start, size in self._spans(offset, count):
            yield str(buffer[start : start + size], "utf-8")

    def _spans(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of the text of each string: every one follows its length."""
        length = struct.Struct(">Q" if self.byte_order == "S" else "<Q")
        buffer = memoryview(self.data)
        for _ in range(count):
            if offset + length.size > len(buffer):
                raise ModelError(
                    f"{self._path}: truncated GGUF file: wanted at least {offset + length.size} bytes, "
                    f"got {len(buffer)}"
                )
            size = length.unpack_from(buffer, offset)[0]
            yield offset + length.size, size
            offset += length.size + size


def shortest_float(value: float) -> float:
    """The shortest decimal that is the same float32, so that 1e-5 reads as 1e-5."""
    return float(str(np.float32(value))) if math.isfinite(value) else value
