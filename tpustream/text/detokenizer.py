"""Detokenizer: token ids to text as they come, never half a character."""

import codecs

from tpustream.text.vocabulary import Tokenizer


class Detokenizer:
    """Turns one stream of tokens into text.

    All that `push` and `flush` return, joined, is the text of all bytes at once. Bytes that may still
    become a character are held; U+FFFD stands only for bytes that no later byte can make valid
    (the Unicode Standard, section 3.9, "maximal subpart"). One object serves one stream.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that this token completes; may be empty."""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """What is left when the stream ends: U+FFFD for a character that was never completed, or nothing."""
        return self._decoder.decode(b"", final=True)
