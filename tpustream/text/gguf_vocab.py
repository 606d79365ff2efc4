"""GGUFVocab: what a GGUF file says about its tokenizer, read and checked, not yet a tokenizer.

Field names and token types are those of the GGUF specification (ggml, docs/gguf.md, "Tokenizer").
"""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpustream.core.errors import ModelError
from tpustream.files.gguf_reader import QuickReader
from tpustream.text.vocabulary import TokenizerSettings

END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}
)
"""Control tokens that end an answer although a file may name only another one as its EOS."""

ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class TokenType(enum.IntEnum):
    """tokenizer.ggml.token_type, the numbers of SentencePiece's ModelProto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUFVocab:
    """Fields `tokenizer.*` of one file.

    Attributes:
      path: the file, for messages.
      model, pre: kind of vocabulary and of pre-tokenizer; pre is None where the file has none.
      tokens, types, scores: one a token; scores are empty in a BPE vocabulary.
      merges: "left right" pairs, best first; empty in a SentencePiece vocabulary.
      unknown_id: the token for what the vocabulary cannot spell, or None.
      add_bos: tokenizer.ggml.add_bos_token, None where the file is silent.
      add_space_prefix: a space goes before every text; None where the file is silent.
      bos_id, eos_ids, chat_template, special_tokens: see TokenizerSettings.
    """

    path: Path
    model: str
    pre: str | None
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    unknown_id: int | None
    add_bos: bool | None
    add_space_prefix: bool | None
    bos_id: int | None
    eos_ids: frozenset[int]
    chat_template: str | None
    special_tokens: Mapping[str, str]

    def of_type(self, *types: TokenType) -> list[int]:
        """Ids of the tokens of these types, ascending."""
        return [token for token, kind in enumerate(self.types) if kind in types]

    def settings(self, *, add_bos_default: bool) -> TokenizerSettings:
        """The settings, with what llama.cpp does where a file does not say whether to add BOS."""
        add_bos = self.add_bos if self.add_bos is not None else add_bos_default and self.bos_id is not None
        return TokenizerSettings(
            bos_id=self.bos_id,
            eos_ids=self.eos_ids,
            add_bos=add_bos,
            chat_template=self.chat_template,
            special_tokens=self.special_tokens,
        )


def read_gguf_vocab(path: Path) -> GGUFVocab:
    """Read the tokenizer of a GGUF file. Raises ModelError for a broken file or missing fields."""
    fields = _read_fields(path)
    model = fields.get("tokenizer.ggml.model")
    tokens = tuple(fields.get("tokenizer.ggml.tokens", ()))
    if model is None or not tokens:
        raise ModelError(
            f"{path}: wanted the fields tokenizer.ggml.model and tokenizer.ggml.tokens, got neither"
        )
    types = _per_token(path, fields, "token_type", len(tokens), default=TokenType.NORMAL)
    scores = _per_token(path, fields, "scores", len(tokens), default=None)
    try:
        kinds = tuple(map(TokenType, types))
    except ValueError as error:
        raise ModelError(f"{path}: tokenizer.ggml.token_type: wanted 1 to 6, got: {error}") from error
    role_ids = {role: _token_id(path, fields, name, len(tokens)) for role, name in ROLES.items()}
    ends = {_token_id(path, fields, name, len(tokens)) for name in ("eos", "eot", "eom")}
    ends |= {i for i, kind in enumerate(kinds) if kind is TokenType.CONTROL and tokens[i] in END_OF_TURN}
    return GGUFVocab(
        path=path,
        model=model,
        pre=fields.get("tokenizer.ggml.pre"),
        tokens=tokens,
        types=kinds,
        scores=scores,
        merges=tuple(fields.get("tokenizer.ggml.merges", ())),
        unknown_id=role_ids["unk_token"],
        add_bos=fields.get("tokenizer.ggml.add_bos_token"),
        add_space_prefix=fields.get("tokenizer.ggml.add_space_prefix"),
        bos_id=role_ids["bos_token"],
        eos_ids=frozenset(ends - {None}),
        chat_template=fields.get("tokenizer.chat_template"),
        special_tokens={role: tokens[i] for role, i in role_ids.items() if i is not None},
    )


def _read_fields(path: Path) -> Mapping[str, Any]:
    reader = QuickReader(path)
    return {name: reader.value(name) for name in reader.fields if name.startswith("tokenizer.")}


def _per_token(path: Path, fields: Mapping[str, Any], name: str, count: int, *, default: Any) -> tuple:
    values = fields.get(f"tokenizer.ggml.{name}")
    if values is None:
        return () if default is None else (default,) * count
    if len(values) != count:
        raise ModelError(
            f"{path}: tokenizer.ggml.{name}: wanted {count} values, one a token, got {len(values)}"
        )
    return tuple(values)


def _token_id(path: Path, fields: Mapping[str, Any], name: str, count: int) -> int | None:
    token = fields.get(f"tokenizer.ggml.{name}_token_id")
    if token is not None and not 0 <= token < count:
        raise ModelError(f"{path}: tokenizer.ggml.{name}_token_id: wanted 0..{count - 1}, got {token}")
    return token
