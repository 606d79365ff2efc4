"""StopMatcher: find stop strings in a text that arrives in pieces, and show no part of one.

The result does not depend on how the text is cut: it is what a matcher sees that is fed one
character at a time. The match that ends first wins; of several that end at the same character, the
longest, because all of it is part of a stop. Knows nothing of tokens.
"""


class StopMatcher:
    """Matches one stream against a request's stop strings.

    Args:
      stops: non-empty strings; none at all lets every text through.

    Raises:
      ValueError: an empty stop string, which would match everywhere.
    """

    def __init__(self, stops: tuple[str, ...]):
        if any(not stop for stop in stops):
            raise ValueError(f"stops: wanted non-empty strings, got {stops!r}")
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece of text.

        Returns:
          (text that is safe to show, the stop that matched or None). Text that may be the beginning
          of a stop is held; after a match everything that comes is dropped.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        first = self._first_match(text)
        if first is not None:
            start, self._matched = first
            self._held = ""
            return text[:start], self._matched
        safe = len(text) - self._beginning_at_end(text)
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What was held, when the stream ends without a match."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """(start, stop) of the match that ends first, the longest of those."""
        found = [(text.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if not ends:
            return None
        _, start, stop = min(ends)
        return start, stop

    def _beginning_at_end(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
