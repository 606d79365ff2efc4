"""SpecialSplitter: cut a text at the names of special tokens; the leftmost wins, then the longest."""

import re
from collections.abc import Iterator, Mapping


class SpecialSplitter:
    """Finds any of thousands of names in one pass over a text.

    A regex of all the names would try them one by one at every "<"; here a character class finds the
    places where a name could begin, and a dict is asked for the few lengths that exist.
    """

    def __init__(self, ids: Mapping[str, int]):
        self._ids = {name: token for name, token in ids.items() if name}
        lengths: dict[str, set[int]] = {}
        for name in self._ids:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        first_chars = "".join(map(re.escape, self._lengths))
        self._candidate = re.compile(f"[{first_chars}]") if first_chars else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts in order: an id for each name, non-empty text between them."""
        start = position = 0
        while self._candidate is not None and (match := self._candidate.search(text, position)):
            begin = match.start()
            lengths = self._lengths[text[begin]]
            length = next((n for n in lengths if text[begin : begin + n] in self._ids), None)
            if length is None:
                position = begin + 1
                continue
            if begin > start:
                yield text[start:begin]
            yield self._ids[text[begin : begin + length]]
            start = position = begin + length
        if start < len(text):
            yield text[start:]
