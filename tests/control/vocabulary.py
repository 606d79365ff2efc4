"""A vocabulary of a few tokens for streams of text."""

from tpustream.text import Tokenizer
from tpustream.text.vocabulary import TokenizerSettings


class ListTokenizer(Tokenizer):
    """Token i is the i-th entry of `pieces`; None is a special token, which the model ends with."""

    def __init__(self, *pieces: bytes | None):
        special = frozenset(token for token, piece in enumerate(pieces) if piece is None)
        super().__init__(
            settings=TokenizerSettings(eos_ids=special),
            token_texts=[f"<{token}>" for token in range(len(pieces))],
            token_bytes=[piece or b"" for piece in pieces],
            special_ids=special,
            strip_leading_space=False,
        )

    def save(self, folder):
        """Never called."""
        raise NotImplementedError

    def _encode_text(self, text, parse_special):
        raise NotImplementedError
