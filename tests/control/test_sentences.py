"""Where a graceful stop may cut."""

import pytest

from tpustream.control.sentences import SentenceEnds


def ends(pieces: list[str]) -> list[str]:
    """The text up to each end that is found, cut where it is found."""
    matcher, seen, out = SentenceEnds(), "", []
    for piece in pieces:
        end = matcher.push(piece)
        if end is not None:
            out.append(seen + piece[:end])
        seen += piece
    return out


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (["Yes", ".", " No"], ["Yes."]),
        (["Yes. No"], ["Yes."]),
        (["He said ", '"yes', '!"', " and"], ['He said "yes!"']),
        (["Pi is 3", ".", "14"], []),
        (["wait", "...", " what", "?", "\n"], ["wait...", "wait... what?"]),
        (["a line", "\n", "more"], ["a line"]),
        (["はい", "。", "いいえ"], ["はい。", "はい。"]),  # for who asks only then
        (["「はい。", "」"], ["「はい。", "「はい。」"]),
        (["no end", ""], []),
    ],
)
def test_ends_of_sentences(pieces, found):
    """However the text is cut into tokens; never within a number."""
    assert ends(pieces) == found


def test_an_end_long_past_is_not_found_again():
    """A stop that is asked for later waits for the next one."""
    matcher = SentenceEnds()
    assert matcher.push("Yes. Then") == 4
    assert matcher.push(" more") is None
