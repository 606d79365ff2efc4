"""What a stream may see of its past, as a list that grows forever and a slice of it."""

from typing import Generic, TypeVar

Item = TypeVar("Item")


class ListCache(Generic[Item]):
    """The model of a ring cache with sinks: nothing is overwritten, only no longer shown.

    Args:
      columns: S, columns of the cache, sinks included.
      sinks: n, first positions that stay visible.
      window: W, tokens that the layer itself sees, the newest included; None for all. A layer with a
        window shorter than the cache keeps a ring of W and no sinks.
    """

    def __init__(self, columns: int, sinks: int, window: int | None = None):
        if not 0 <= sinks < columns:
            raise ValueError(f"sinks: wanted 0 <= sinks < columns ({columns}), got {sinks}")
        if window is not None and window < 1:
            raise ValueError(f"window: wanted >= 1 or None, got {window}")
        local = window is not None and window < columns
        self._sinks = 0 if local else sinks
        self._recent = window if local else columns - sinks
        self._items: list[Item] = []

    def append(self, position: int, item: Item) -> None:
        """Write the token at `position`, which is the number of tokens written so far."""
        if position != len(self._items):
            raise ValueError(f"position: wanted {len(self._items)}, got {position}")
        self._items.append(item)

    def visible(self) -> list[tuple[int, Item]]:
        """(position, item) that the newest token attends to, itself included, oldest first."""
        length = len(self._items)
        shown = [p for p in range(length) if p < self._sinks or p >= length - self._recent]
        return [(position, self._items[position]) for position in shown]
