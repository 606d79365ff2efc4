"""Tokenizer: the one interface between text and token ids, whatever file the vocabulary came from.

A subclass knows how to turn text into ids; what an id contributes to the output is a table of bytes
made once, so that streaming costs one list lookup a token. Knows nothing of models, weights or jax.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tpustream.core.errors import InvalidRequest, ModelError

SPACE = "\u2581"
"""What SentencePiece writes for a space (LOWER ONE EIGHTH BLOCK)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What a model's files say about its tokenizer beside the vocabulary.

    Attributes:
      bos_id: the token that begins a text, or None.
      eos_ids: the tokens that end the model's answer; empty for a model that never ends one.
      add_bos: whether `encode` puts bos_id in front.
      chat_template: Jinja source, or None.
      special_tokens: role -> text, for templates ("bos_token": "<s>", ...).
    """

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.add_bos and self.bos_id is None:
            raise ModelError("add_bos_token: wanted a bos_token in the vocabulary to add, got none")


class Tokenizer(abc.ABC):
    """Text to ids and back. Immutable, and safe to use from several threads.

    Args:
      settings: see TokenizerSettings.
      token_texts: V texts as the vocabulary spells them.
      token_bytes: V byte strings, what each token adds to the output; b"" for special tokens.
      special_ids: tokens that steer the model and are never shown.
      strip_leading_space: the vocabulary's own encoder puts a space before every text, so `decode`
        takes one away.
    """

    def __init__(
        self,
        *,
        settings: TokenizerSettings,
        token_texts: Sequence[str],
        token_bytes: Sequence[bytes],
        special_ids: Iterable[int],
        strip_leading_space: bool,
    ):
        self._settings = settings
        self._texts = tuple(token_texts)
        self._bytes = tuple(token_bytes)
        self._strip_leading_space = strip_leading_space
        self.special_ids = frozenset(special_ids)
        for token in sorted({*settings.eos_ids, *self.special_ids, *self._prefix()}):
            if not 0 <= token < len(self._texts):
                raise ModelError(f"special token id: wanted 0..{len(self._texts) - 1}, got {token}")

    @property
    def vocab_size(self) -> int:
        """V, ids that have a text. An embedding table may be padded beyond it."""
        return len(self._texts)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self._settings.bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end the model's answer."""
        return self._settings.eos_ids

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template (see text/chat_template.py)."""
        return self._settings.chat_template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Role -> text of the special tokens that templates name ("bos_token", "eos_token", ...)."""
        return self._settings.special_tokens

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        Args:
          text: any Unicode text.
          add_bos: put in front what the model's own tokenizer puts there: BOS or nothing. A rendered
            chat template writes its own BOS, so it is encoded with add_bos=False. Nothing is ever
            added at the end: an end token would end the prompt.
          parse_special: texts such as <|im_start|> become their special tokens; otherwise they are
            spelled out like any other text.

        Raises:
          InvalidRequest: the text has half of a surrogate pair, which no UTF-8 text can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"text: wanted valid Unicode, got the lone surrogate {text[error.start]!r} "
                f"at character {error.start}"
            ) from error
        return [*(self._prefix() if add_bos else ()), *self._encode_text(text, parse_special)]

    def token_bytes(self, token: int) -> bytes:
        """Raw bytes that this token adds to the output, possibly part of a character.

        b"" for special tokens and for the ids of a padded embedding table, which have no text.
        """
        return self._bytes[token] if self._has_text(token) else b""

    def token_text(self, token: int) -> str:
        """The token for display: special tokens by name, broken characters as U+FFFD."""
        if not self._has_text(token):
            return ""
        return self._bytes[token].decode(errors="replace") or self._texts[token]

    def decode(self, ids: Iterable[int], *, show_special: bool = False) -> str:
        """The text of a whole sequence; invalid UTF-8 becomes U+FFFD.

        Special tokens are left out, or stand there by name with `show_special`.

        decode(encode(text)) is the text, unless the vocabulary normalizes it. A continuation is
        decoded with Detokenizer, which keeps the space that separates it from its prompt.
        """
        pieces = map(self.token_bytes, ids)
        if show_special:
            pieces = (self.token_bytes(token) or self.token_text(token).encode() for token in ids)
        text = b"".join(pieces).decode(errors="replace")
        return text.removeprefix(" ") if self._strip_leading_space else text

    @abc.abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer(folder)` reads back, beside whatever is there."""

    @abc.abstractmethod
    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        """Ids of a valid text, with nothing added."""

    def _prefix(self) -> tuple[int, ...]:
        """Ids that the model's own tokenizer puts before a text."""
        return (self._settings.bos_id,) if self._settings.add_bos else ()

    def _has_text(self, token: int) -> bool:
        if token < 0:
            raise ValueError(f"token id: wanted >= 0, got {token}")
        return token < len(self._texts)
