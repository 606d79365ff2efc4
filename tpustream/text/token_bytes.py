"""What a token's spelling in a vocabulary means in bytes: the byte alphabet and SentencePiece's form."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from tpustream.core.errors import ModelError
from tpustream.text.vocabulary import SPACE

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte, as GPT-2 assigns them (openai/gpt-2, src/encoder.py, bytes_to_unicode).

    Printable Latin-1 characters stand for themselves; U+0100 onwards for the other bytes, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a vocabulary spells bytes.

    Attributes:
      byte_level: in the byte alphabet; otherwise in SentencePiece's form, with U+2581 for a space.
      byte_fallback: <0xNN> is one byte (SentencePiece's form only).
      strip_leading_space: the encoder puts a space before a text, decoding takes it away.
    """

    byte_level: bool
    byte_fallback: bool = False
    strip_leading_space: bool = False

    def bytes_of(self, text: str, *, added: bool = False) -> bytes:
        """Bytes of a token. An `added` token of a byte-level vocabulary is spelled as it is."""
        if not self.byte_level:
            return sentencepiece_bytes(text) if self.byte_fallback else text.replace(SPACE, " ").encode()
        if added or not all(char in BYTE_ALPHABET for char in text):
            return text.encode()
        return bytes(BYTE_ALPHABET[char] for char in text)


def sentencepiece_bytes(text: str) -> bytes:
    """Bytes of a SentencePiece token: <0xNN> is one byte, U+2581 a space, anything else itself."""
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace(SPACE, " ").encode()


def read_decoder(decoder: Mapping[str, Any] | None) -> Spelling:
    """The spelling that the `decoder` of a tokenizer.json undoes. Raises ModelError for an unknown one."""
    steps = [decoder or {"type": "none"}]
    if steps[0]["type"] == "Sequence":
        steps = steps[0]["decoders"]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return Spelling(byte_level=True)
    for step in steps:
        if not _is_sentencepiece_step(step):
            raise ModelError(
                "decoder: wanted ByteLevel, or Metaspace, Replace (U+2581 by a space), ByteFallback, Fuse "
                f"and Strip (one space in front), got {json.dumps(step)}"
            )
    return Spelling(
        byte_level=False,
        byte_fallback=any(step["type"] == "ByteFallback" for step in steps),
        strip_leading_space=any(
            step["type"] == "Strip"
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        ),
    )


def _is_sentencepiece_step(step: Mapping[str, Any]) -> bool:
    match step["type"]:
        case "Metaspace":
            return step.get("replacement") == SPACE
        case "Strip":
            return (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)
        case "Replace":
            return step.get("pattern") == {"String": SPACE} and step.get("content") == " "
        case kind:
            return kind in ("ByteFallback", "Fuse")
