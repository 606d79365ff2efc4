"""TensorSource: what every file format offers the loader, and how a shard is cut from a file.

A source knows the file's names and shapes and gives one tensor, or a part of it, at a time. It knows
neither devices nor dtypes of the engine.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from tpustream.weights.names import Stored

Index = tuple[slice, ...]


class TensorSource(Protocol):
    """One open model file, or folder of files.

    Attributes:
      where: the path, for messages.
      shapes: the file's tensor name -> its shape, outermost first.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, index: Index) -> np.ndarray:
        """The part `index` (in the file's own dimensions) of tensor `name`, as plain numbers."""
        ...


def read_shard(source: TensorSource, stored: Stored, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """The part `index`, in our dimensions, of a tensor of our `shape`.

    A file dimension that merges (heads, head_dim) is read for whole heads and cut afterwards, so the
    file delivers little more than the shard.
    """
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    in_file, out_shape, cuts = [], [], []
    for group in stored.groups:
        inner = math.prod(shape[axis] for axis in group[1:])
        start, stop = bounds[group[0]]
        in_file.append(slice(start * inner, stop * inner))
        out_shape += [stop - start, *(shape[axis] for axis in group[1:])]
        cuts += [slice(None), *(slice(*bounds[axis]) for axis in group[1:])]
    return source.read(stored.name, tuple(in_file)).reshape(out_shape)[tuple(cuts)]
