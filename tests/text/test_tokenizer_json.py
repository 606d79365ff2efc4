"""Tokenizers from tokenizer.json folders, against the `tokenizers` library itself."""

import json

import pytest

from tpustream.core.errors import InvalidRequest, ModelError
from tpustream.text import load_tokenizer

from .vocabularies import CHAT_TEMPLATE, LINES, byte_level_backend, metaspace_backend

TEXTS = [*LINES[:5], "", " ", "a  b\n\n", "<|turn|>hi</s>", "<think>x", "👨‍👩‍👧 ✓", "\x00\x7f"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level folder with everything Hugging Face keeps beside a vocabulary."""
    folder = tmp_path_factory.mktemp("byte_level")
    byte_level_backend().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "chat_template": "old"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "top_p": 0.9}))
    return folder


def test_ids_and_bytes_are_the_librarys(folder):
    """Ids equal the library's; the bytes of the ids joined are the text's own bytes."""
    tokenizer, backend = load_tokenizer(folder), byte_level_backend()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == backend.encode(text).ids
        assert tokenizer.decode(ids) == backend.decode(ids)
        literal = tokenizer.encode(text, add_bos=False, parse_special=False)
        assert b"".join(map(tokenizer.token_bytes, literal)) == text.encode()


def test_settings_come_from_the_files_beside_it(folder):
    """EOS set, BOS, specials and the .jinja template reach the interface."""
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.special_ids) == (0, {1, 2}, {0, 1, 2})
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.vocab_size == byte_level_backend().get_vocab_size()
    assert tokenizer.encode("a", add_bos=False) == tokenizer.encode("a")[1:]


def test_special_tokens_are_named_but_have_no_bytes(folder):
    """A special token never reaches the text; an added token that is not special does."""
    tokenizer = load_tokenizer(folder)
    turn, think = tokenizer.encode("<|turn|><think>", add_bos=False)
    assert (tokenizer.token_bytes(turn), tokenizer.token_text(turn)) == (b"", "<|turn|>")
    assert (tokenizer.token_bytes(think), tokenizer.token_text(think)) == (b"<think>", "<think>")
    assert turn not in tokenizer.encode("<|turn|>", parse_special=False)


def test_add_bos_token_overrules_the_post_processor(folder, tmp_path):
    """tokenizer_config.json decides, as in transformers."""
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": False}))
    assert 0 not in load_tokenizer(tmp_path).encode("a")


def test_truncation_in_the_file_is_not_obeyed(tmp_path):
    """An over-long prompt is an error elsewhere, never silently cut here."""
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("abc " * 100)) > 100


def test_saved_folder_loads_as_the_same(folder, tmp_path):
    """A converted model keeps its tokenizer, template and end tokens."""
    first = load_tokenizer(folder)
    first.save(tmp_path / "copy")
    second = load_tokenizer(tmp_path / "copy")
    assert [second.encode(text) for text in TEXTS] == [first.encode(text) for text in TEXTS]
    assert second.eos_ids == first.eos_ids and second.special_ids == first.special_ids
    assert second.chat_template == first.chat_template and second.special_tokens == first.special_tokens


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_form_with_byte_fallback(tmp_path, prefix):
    """U+2581 and <0xNN> become bytes; only a vocabulary that adds a space takes one away."""
    metaspace_backend(prefix=prefix).save(str(tmp_path / "tokenizer.json"))
    tokenizer, backend = load_tokenizer(tmp_path), metaspace_backend(prefix=prefix)
    for text in ("ab", " ab", "ab ab", "é ✓ ab", "  "):
        ids = tokenizer.encode(text)
        assert ids == backend.encode(text).ids
        assert tokenizer.decode(ids) == backend.decode(ids)
    assert tokenizer.token_bytes(tokenizer.encode("é")[-1]) == b"\xa9"


def test_unknown_decoder_is_named(tmp_path):
    """A vocabulary whose bytes we cannot know is refused by the decoder's name."""
    data = json.loads(byte_level_backend().to_str())
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"decoder: wanted ByteLevel.*got.*WordPiece"):
        load_tokenizer(tmp_path)


def test_broken_and_missing_files_are_named(tmp_path):
    """Every way a folder can be wrong is a ModelError with what was wanted."""
    with pytest.raises(ModelError, match=r"wanted tokenizer.json or tokenizer.model, got \[\]"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="got nothing there"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="got a file named 'model"):
        load_tokenizer(tmp_path / "model.bin")
    text = byte_level_backend().to_str()
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(ModelError, match="of the tokenizers library, got"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<none>"}))
    with pytest.raises(ModelError, match="eos_token: wanted a token of the vocabulary, got '<none>'"):
        load_tokenizer(tmp_path)


def test_lone_surrogate_is_the_requests_fault(folder):
    """JSON can carry half a surrogate pair; that ends one request, not the server."""
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        load_tokenizer(folder).encode("a\ud83d")


def test_ids_beyond_the_vocabulary(folder):
    """A padded embedding table may give ids without text; a negative id is a bug."""
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.token_bytes(10**6), tokenizer.token_text(10**6)) == (b"", "")
    with pytest.raises(ValueError, match="token id: wanted >= 0, got -1"):
        tokenizer.token_bytes(-1)
