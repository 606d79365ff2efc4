"""Vocabularies of the `tokenizers` library: a tokenizer.json, or byte-level BPE from a GGUF file.

The library turns text into ids; what the ids mean in bytes follows from the file's decoder
(token_bytes.py).
"""

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from tpustream.core.errors import ModelError
from tpustream.text.folder import FolderSettings, write_folder
from tpustream.text.gguf_vocab import GGUFVocab, TokenType
from tpustream.text.pre_tokenizers import split_rule
from tpustream.text.token_bytes import Spelling, read_decoder
from tpustream.text.vocabulary import Tokenizer, TokenizerSettings


class BPETokenizer(Tokenizer):
    """A tokenizer that the `tokenizers` library runs. Arguments as its base class, and the backend."""

    def __init__(self, backend: Backend, **fields: Any):
        super().__init__(**fields)
        self._backend = backend

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and the settings beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        write_folder(folder, self._settings, tokenizer_class="PreTrainedTokenizerFast")

    def _encode_text(self, text: str, parse_special: bool) -> list[int]:
        backend = self._backend if parse_special else self._literal_backend
        return backend.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _literal_backend(self) -> Backend:
        """A second backend that spells special tokens out: the switch is not per call, nor thread-safe."""
        literal = Backend.from_str(self._backend.to_str())
        literal.encode_special_tokens = True
        return literal


def bpe_from_json(path: Path, folder: FolderSettings) -> BPETokenizer:
    """Read a tokenizer.json. Raises ModelError for a broken file or an unknown decoder."""
    try:
        source = path.read_text(encoding="utf-8")
        backend = Backend.from_str(source)
        decoder = json.loads(source).get("decoder")
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"{path}: wanted a tokenizer.json of the tokenizers library, got: {error}"
        ) from error
    backend.no_truncation()  # a prompt that is cut in silence would be answered as if it were whole
    backend.no_padding()
    settings = folder.resolve(backend.token_to_id, add_bos_default=False)
    if folder.add_bos is None:
        settings = _settings_of_post_processor(path, backend, settings)
    try:
        spelling = read_decoder(decoder)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return _build(backend, settings, spelling)


def bpe_from_gguf(vocab: GGUFVocab) -> BPETokenizer:
    """Build byte-level BPE from a GGUF file's tokens and merges. Raises ModelError for broken ones."""
    try:
        rule = split_rule(vocab.pre)
    except ModelError as error:
        raise ModelError(f"{vocab.path}: {error}") from error
    unused = set(vocab.of_type(TokenType.UNUSED))
    ids = {text: token for token, text in enumerate(vocab.tokens) if token not in unused}
    merges = [tuple(merge.split(" ")) for merge in vocab.merges]
    bad = next((merge for merge in merges if len(merge) != 2), None)
    if not merges or bad is not None:
        raise ModelError(f"{vocab.path}: tokenizer.ggml.merges: wanted pairs 'left right', got {bad}")
    try:
        backend = Backend(models.BPE(vocab=ids, merges=merges, ignore_merges=rule.whole_words))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{vocab.path}: wanted merges of tokens of the vocabulary, got: {error}") from error
    if rule.normalizer is not None:
        backend.normalizer = rule.normalizer
    backend.pre_tokenizer = rule.pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(vocab.tokens[token], normalized=False) for token in vocab.of_type(TokenType.CONTROL)]
    )
    backend.add_tokens(
        [AddedToken(vocab.tokens[token], normalized=False) for token in vocab.of_type(TokenType.USER_DEFINED)]
    )
    settings = vocab.settings(add_bos_default=rule.add_bos)
    return _build(backend, settings, Spelling(byte_level=True), size=len(vocab.tokens))


def _build(
    backend: Backend, settings: TokenizerSettings, spelling: Spelling, *, size: int = 0
) -> BPETokenizer:
    """`size` counts ids that have no token too; 0 means up to the last token."""
    vocab = backend.get_vocab(with_added_tokens=True)
    texts = [""] * max(size, max(vocab.values(), default=-1) + 1)
    for text, token in vocab.items():
        texts[token] = text
    added = backend.get_added_tokens_decoder()
    special = {token for token, entry in added.items() if entry.special}
    table = [spelling.bytes_of(text, added=token in added) for token, text in enumerate(texts)]
    for token in special:
        table[token] = b""
    return BPETokenizer(
        backend,
        settings=settings,
        token_texts=texts,
        token_bytes=table,
        special_ids=special,
        strip_leading_space=spelling.strip_leading_space,
    )


def _settings_of_post_processor(
    path: Path, backend: Backend, settings: TokenizerSettings
) -> TokenizerSettings:
    """The BOS that the file's post-processor writes, where tokenizer_config.json does not say."""
    encoding = backend.encode("a", add_special_tokens=True)
    plain = len(backend.encode("a", add_special_tokens=False).ids)
    mask = encoding.special_tokens_mask
    before = encoding.ids[: mask.index(0)] if 0 in mask else encoding.ids[: len(mask) - plain]
    if not before:
        return settings
    if len(before) > 1 or settings.bos_id not in (None, before[0]):
        raise ModelError(
            f"{path}: post_processor: wanted bos_token ({settings.bos_id}) in front, got {before}"
        )
    bos = backend.id_to_token(before[0])
    return TokenizerSettings(
        bos_id=before[0],
        eos_ids=settings.eos_ids,
        add_bos=True,
        chat_template=settings.chat_template,
        special_tokens={"bos_token": bos, **settings.special_tokens},
    )
