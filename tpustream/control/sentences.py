"""SentenceEnds: where sentences end in a text that arrives in pieces. Knows nothing of tokens."""

import re

END = re.compile(
    r"""[.!?…]["'”’»)\]]*(?=\s)"""  # of languages that put white space between sentences
    r"""|[。！？]["'”’»」』）]*"""
    r"""|(?=\n)"""
)
LOOK_BACK = 8  # characters in which the marks of one end have room


class SentenceEnds:
    """Follows one text.

    A sentence ends after a full stop, question or exclamation mark, and the closing quotes and brackets
    behind it, where white space follows; after those of East Asian writing whatever follows; and where a
    line ends. "3.14" is no end; "e.g. this" is taken for one.
    """

    def __init__(self):
        self._before = ""

    def push(self, text: str) -> int | None:
        """Take the next piece: how much of it belongs to a sentence that ends there, or None.

        0 where its first character shows that the sentence had ended before.
        """
        before, whole = len(self._before), self._before + text
        self._before = whole[-LOOK_BACK:]
        for match in END.finditer(whole):
            if match.end() >= before:
                return match.end() - before
        return None
