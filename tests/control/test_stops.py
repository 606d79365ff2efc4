"""Stop strings, against a matcher that sees one character at a time and remembers everything."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpustream.control import StopMatcher


def naive(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """(text before the match, match): at each character, is a stop the end of all so far?"""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


letters = st.text(alphabet="abé", max_size=30)
stop_sets = st.lists(st.text(alphabet="abé", min_size=1, max_size=6), max_size=4).map(tuple)


@settings(deadline=None)
@given(stop_sets, letters, st.lists(st.integers(0, 100), max_size=12))
@example(("aab", "ab"), "xaab", [2, 3])
@example(("abab", "b"), "aab", [])
def test_any_cutting_gives_the_naive_answer(stops, text, cuts):
    """However the text is cut: the same text shown, the same match, no part of it leaked on the way."""
    wanted_text, wanted_match = naive(stops, text)
    matcher, shown, matched = StopMatcher(stops), "", None
    for piece in pieces_of(text, cuts):
        part, matched = matcher.push(piece)
        shown += part
        assert wanted_text.startswith(shown)
    assert matched == wanted_match
    assert shown + matcher.flush() == wanted_text


@settings(deadline=None)
@given(stop_sets, letters)
def test_holds_no_more_than_a_beginning_of_a_stop(stops, text):
    """What is held is the longest end that may still become a stop: streams do not stutter for nothing."""
    matcher, shown = StopMatcher(stops), ""
    for end, char in enumerate(text, start=1):
        part, matched = matcher.push(char)
        shown += part
        if matched is not None:
            return
        held = text[len(shown) : end]
        assert not held or any(stop.startswith(held) for stop in stops)
        starts = range(len(shown))
        assert not any(stop.startswith(text[start:end]) for start in starts for stop in stops)


def test_ends_first_then_longest():
    """Two stops in one piece: the one that ends first; two that end together: the longer."""
    assert StopMatcher(("world", "lo")).push("hello world") == ("hel", "lo")
    assert StopMatcher(("o w", "lo w")).push("hello world") == ("hel", "lo w")
    assert StopMatcher(("abc", "b")).push("abc") == ("a", "b")


def test_held_text_comes_with_flush_and_nothing_after_a_match():
    """A beginning that never became a stop is shown at the end, once; after a match all is dropped."""
    matcher = StopMatcher(("END",))
    assert matcher.push("the EN") == ("the ", None)
    assert (matcher.flush(), matcher.flush()) == ("EN", "")
    assert matcher.push("END!") == ("", "END")
    assert matcher.push("more") == ("", "END")
    assert matcher.flush() == ""


def test_no_stops_hold_nothing_and_empty_ones_are_refused():
    """Without stops text passes through; an empty stop would match before the first character."""
    assert StopMatcher(()).push("abc") == ("abc", None)
    with pytest.raises(ValueError, match="wanted non-empty strings"):
        StopMatcher(("a", ""))
