"""Cutting texts at special tokens, against a search that tries every name at every place."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tpustream.text.special_split import SpecialSplitter

NAMES = {"<a>": 1, "<a><b>": 2, "<b>": 3, "[x]": 4, "<a": 5}


def naive(text: str) -> list[str | int]:
    parts: list[str | int] = [""]
    while text:
        name = max((name for name in NAMES if text.startswith(name)), key=len, default=None)
        if name is None:
            parts[-1] += text[0]
            text = text[1:]
        else:
            parts += [NAMES[name], ""]
            text = text[len(name) :]
    return [part for part in parts if part != ""]


@settings(deadline=None)
@given(st.text(alphabet="<a>b[x]é"))
def test_leftmost_then_longest(text):
    """The same parts as the naive search, whatever overlaps."""
    assert list(SpecialSplitter(NAMES).split(text)) == naive(text)


def test_no_names_leave_the_text_whole():
    """Without names, and with an empty one, a text is one part."""
    assert list(SpecialSplitter({}).split("<a>")) == ["<a>"]
    assert list(SpecialSplitter({"": 1}).split("<a>")) == ["<a>"]
