"""SentencePiece vocabularies: a tokenizer.model, or the same thing rebuilt from a GGUF file's fields.

The sentencepiece library turns text into ids. It does not see special tokens in text, so texts are
cut at them first (special_split.py).
"""

import dataclasses
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as schema

from tpustream.core.errors import ModelError
from tpustream.text.folder import AddedToken, FolderSettings, write_folder
from tpustream.text.gguf_vocab import GGUFVocab, TokenType
from tpustream.text.special_split import SpecialSplitter
from tpustream.text.token_bytes import sentencepiece_bytes
from tpustream.text.vocabulary import SPACE, Tokenizer, TokenizerSettings


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer that the sentencepiece library runs.

    Args:
      model: the serialized ModelProto.
      added_tokens: tokens beyond the model's own, and own tokens that are to be special.
      named: text -> id of special tokens, cut out of a text unless they are to be spelled out.
      always_named: the same for tokens that are never spelled out.
      fields: arguments of the base class.
    """

    def __init__(
        self,
        model: bytes,
        added_tokens: dict[int, AddedToken],
        *,
        named: dict[str, int],
        always_named: dict[str, int],
        **fields: Any,
    ):
        super().__init__(**fields)
        self._model = model
        self._added_tokens = added_tokens
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._special_split = SpecialSplitter({**always_named, **named})
        self._literal_split = SpecialSplitter(always_named)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.model and the settings beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self._model)
        write_folder(folder, self._settings, added_tokens=self._added_tokens)

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        ids = []
        for part in (self._special_split if parse_special else self._literal_split).split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self._processor.encode(part))
        return ids


def sentencepiece_from_model(path: Path, folder: FolderSettings) -> SentencePieceTokenizer:
    """Read a tokenizer.model. Raises ModelError for a broken file or settings that do not fit it."""
    try:
        proto = schema.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(f"{path}: wanted a SentencePiece model, got: {error}") from error
    texts = {piece.piece: token for token, piece in enumerate(proto.pieces)}
    texts |= {entry.content: token for token, entry in folder.added_tokens.items()}
    spec = proto.trainer_spec
    own = {"bos_token": (spec.bos_id, spec.bos_piece), "eos_token": (spec.eos_id, spec.eos_piece)}
    own_roles = {role: text for role, (token, text) in own.items() if texts.get(text) == token}
    folder = dataclasses.replace(folder, special_tokens={**own_roles, **folder.special_tokens})
    settings = folder.resolve(texts.get, add_bos_default="bos_token" in folder.special_tokens)
    return _build(path, proto, settings, dict(folder.added_tokens))


def sentencepiece_from_gguf(vocab: GGUFVocab) -> SentencePieceTokenizer:
    """Rebuild the SentencePiece BPE model that a GGUF file was made from. Raises ModelError."""
    if not vocab.scores:
        raise ModelError(f"{vocab.path}: tokenizer.ggml.scores: wanted one a token, got none")
    if vocab.unknown_id is None:
        raise ModelError(f"{vocab.path}: tokenizer.ggml.unknown_token_id: wanted a token, got none")
    proto = schema.ModelProto()
    for token, (text, score, kind) in enumerate(zip(vocab.tokens, vocab.scores, vocab.types, strict=True)):
        # A GGUF file spells the spaces of user-defined tokens as spaces, and may call <unk> a control token.
        spelled = text.replace(" ", SPACE) if kind is TokenType.USER_DEFINED else text
        kind = TokenType.UNKNOWN if token == vocab.unknown_id else kind
        proto.pieces.add(piece=spelled, score=score, type=int(kind))
    spec = proto.trainer_spec
    spec.model_type = schema.TrainerSpec.BPE
    spec.vocab_size = len(vocab.tokens)
    spec.byte_fallback = bool(vocab.of_type(TokenType.BYTE))
    spec.unk_id, spec.unk_piece = vocab.unknown_id, vocab.tokens[vocab.unknown_id]
    for role in ("bos", "eos", "pad"):
        text = vocab.special_tokens.get(f"{role}_token")
        setattr(spec, f"{role}_id", -1 if text is None else vocab.tokens.index(text))
        if text is not None:
            setattr(spec, f"{role}_piece", text)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = vocab.add_space_prefix is not False
    proto.normalizer_spec.remove_extra_whitespaces = False
    return _build(vocab.path, proto, vocab.settings(add_bos_default=True), {})


def _build(
    path: Path, proto: schema.ModelProto, settings: TokenizerSettings, added: dict[int, AddedToken]
) -> SentencePieceTokenizer:
    size = max([len(proto.pieces), *(token + 1 for token in added)])
    texts, table, special, named, always_named = [""] * size, [b""] * size, set(), {}, {}
    prefixed = proto.normalizer_spec.add_dummy_prefix
    for token, piece in enumerate(proto.pieces):
        texts[token] = piece.piece
        if piece.type in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.add(token)
            named[piece.piece] = token
        elif piece.type == TokenType.USER_DEFINED:
            table[token] = piece.piece.replace(SPACE, " ").encode()
            if prefixed:  # the library finds it too, but puts the space of a text's beginning before it
                always_named[piece.piece.replace(SPACE, " ")] = token
        elif piece.type != TokenType.UNUSED:
            table[token] = sentencepiece_bytes(piece.piece)
    for token, entry in added.items():
        texts[token] = entry.content
        if entry.special:
            special.add(token)
            table[token] = b""
            named[entry.content] = token
        elif token >= len(proto.pieces):
            table[token] = entry.content.encode()
            always_named[entry.content] = token
    try:
        return SentencePieceTokenizer(
            proto.SerializeToString(),
            added,
            named=named,
            always_named=always_named,
            settings=settings,
            token_texts=texts,
            token_bytes=table,
            special_ids=special,
            strip_leading_space=prefixed,
        )
    except (RuntimeError, OSError) as error:  # what the library raises for a vocabulary it refuses
        raise ModelError(f"{path}: wanted a vocabulary that SentencePiece takes, got: {error}") from error
