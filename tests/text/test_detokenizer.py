"""The incremental detokenizer, against decoding all bytes at once."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tpustream.text import Detokenizer

SAMPLES = [
    "👨‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪",
    "日本語のテキスト",
    "मस्ते",
    "مرحبا",
    "e\u0301",
    "\U0010ffff\ufffd\x00",
    "plain",
]


class Pieces:
    """Stands in for a tokenizer: token i is the i-th piece of bytes."""

    def __init__(self, pieces: list[bytes]):
        self.token_bytes = pieces.__getitem__


def stream(pieces: list[bytes]) -> list[str]:
    """What each push returned, and the flush."""
    detokenizer = Detokenizer(Pieces(pieces))
    return [*(detokenizer.push(token) for token in range(len(pieces))), detokenizer.flush()]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, some of them empty."""
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


texts = st.one_of(st.text(), st.lists(st.sampled_from(SAMPLES)).map("".join))


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 200)))
def test_any_split_gives_the_text_and_no_replacement(text, cuts):
    """However tokens cut characters, the pieces join to the text and no half character is shown."""
    text = text.encode(errors="ignore").decode()
    pieces = cut(text.encode(), cuts)
    shown = stream(pieces)
    assert "".join(shown) == text
    assert shown[-1] == ""
    seen = b""
    for piece, part in zip(pieces, shown, strict=False):
        seen += piece
        text = text.removeprefix(part)
        assert (
            len(seen) - len(seen.decode(errors="ignore").encode()) < 4
        )  # only an unfinished character waits


@settings(deadline=None)
@given(st.binary(), st.lists(st.integers(0, 200)))
def test_any_split_of_any_bytes_is_the_same_as_at_once(data, cuts):
    """Invalid bytes become U+FFFD exactly as when they are decoded at once."""
    assert "".join(stream(cut(data, cuts))) == data.decode(errors="replace")


def test_flush_shows_an_unfinished_character_once():
    """A stream that ends inside a character says so at the end, not before."""
    assert stream([b"a\xf0\x9f", b"\x99"]) == ["a", "", "\ufffd"]
    assert stream([b"\xe6\x97", b"\xa5"]) == ["", "日", ""]
    assert stream([b"\xff", b"x"]) == ["\ufffd", "x", ""]
