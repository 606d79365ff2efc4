"""Byte-level BPE from GGUF files: the embedded model's vocabulary, and every pre-tokenizer's rule."""

import json

import gguf
import pytest
from tokenizers import pre_tokenizers

from tpustream.core.errors import ModelError
from tpustream.text import ChatTemplate, load_tokenizer
from tpustream.text.pre_tokenizers import RULES, split_rule

from .gguf_files import write_gguf_bpe
from .make_tokenizer_goldens import golden_path

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def smollm(embedded_gguf):
    """The tokenizer of the embedded model."""
    return load_tokenizer(embedded_gguf)


@pytest.mark.embedded
def test_smollm_ids_are_the_authors_own(smollm):
    """Ids from the GGUF file equal those of the tokenizer.json that the model was trained with."""
    for row in json.loads(golden_path("smollm").read_text()):
        assert smollm.encode(row["text"]) == row["ids"], row["text"]
        assert smollm.encode(row["text"], parse_special=False) == row["literal_ids"], row["text"]
        assert b"".join(map(smollm.token_bytes, row["literal_ids"])) == row["text"].encode()


@pytest.mark.embedded
def test_smollm_settings(smollm):
    """No BOS is added, both ends of text end an answer, and the file's own template works."""
    assert (smollm.vocab_size, smollm.bos_id, smollm.eos_ids) == (49_152, 1, {0, 2})
    assert smollm.special_ids == set(range(17))
    prompt = ChatTemplate(smollm.chat_template, smollm.special_tokens).render(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    wanted = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt == wanted
    assert smollm.encode(prompt).count(1) == 3


@pytest.mark.embedded
def test_smollm_survives_saving(smollm, tmp_path):
    """A converted embedded model reads the same as the GGUF file."""
    smollm.save(tmp_path)
    copy = load_tokenizer(tmp_path)
    rows = json.loads(golden_path("smollm").read_text())
    assert [copy.encode(row["text"]) for row in rows] == [row["ids"] for row in rows]
    assert (copy.eos_ids, copy.special_ids, copy.chat_template) == (
        smollm.eos_ids,
        smollm.special_ids,
        smollm.chat_template,
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", " ab 1234's IT'S!\n\n x", ["Ġab", "Ġ1234", "'s", "ĠIT", "'", "S", "!", "ĊĊ", "Ġx"]),
        ("smollm", "ab 123's", ["ab", "Ġ", "1", "2", "3", "'s"]),
        ("llama-bpe", "ab 12345IT'S!\n\n x", ["ab", "Ġ", "123", "45", "IT", "'S", "!ĊĊ", "Ġx"]),
        ("qwen2", "ab 12IT'S!\n\n x", ["ab", "Ġ", "1", "2", "IT", "'S", "!ĊĊ", "Ġx"]),
        ("tekken", "helloWorld 12/\n", ["hello", "World", "Ġ", "1", "2", "/Ċ"]),
        ("gpt-4o", "helloWorld's 1234", ["hello", "World's", "Ġ", "123", "4"]),
    ],
)
def test_words_of_each_rule(name, text, words):
    """Where a vocabulary cuts words decides its ids; the cases are where the rules differ."""
    assert [word for word, _ in split_rule(name).pre_tokenizer.pre_tokenize_str(text)] == words


def test_every_rule_loads_and_keeps_all_bytes(tmp_path):
    """No rule drops a character, whatever the script."""
    text = "Ab 12'S  \n\n\t漢字 éã 🙂 मस्ते\r\n"
    for name in RULES:
        tokenizer = load_tokenizer(write_gguf_bpe(tmp_path / "v.gguf", ["ab", *ALPHABET], ["a b"], pre=name))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_types_of_tokens(tmp_path):
    """Control tokens steer, user-defined ones are text with real spaces, unused ones keep their ids."""
    kind = gguf.TokenType
    tokens = [*ALPHABET, "<|im_end|>", "a b", "[PAD9]"]
    kinds = [*[kind.NORMAL] * 256, kind.CONTROL, kind.USER_DEFINED, kind.UNUSED]
    path = write_gguf_bpe(tmp_path / "v.gguf", tokens, ["a b"], pre="gpt-2", kinds=kinds)
    with pytest.raises(ModelError, match="wanted merges of tokens of the vocabulary"):
        load_tokenizer(path)
    path = write_gguf_bpe(
        tmp_path / "w.gguf", [*tokens, "ab"], ["a b"], pre="gpt-2", kinds=[*kinds, kind.NORMAL]
    )
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.eos_ids, tokenizer.special_ids) == (260, {256}, {256})
    assert tokenizer.encode("a b<|im_end|>ab") == [257, 256, 259]
    assert [tokenizer.token_bytes(token) for token in (256, 257, 258)] == [b"", b"a b", b""]


def test_unknown_pre_tokenizer_is_named(tmp_path):
    """A rule we do not know would give wrong ids in silence."""
    path = write_gguf_bpe(tmp_path / "v.gguf", [*ALPHABET, "ab"], ["a b"], pre="klingon")
    with pytest.raises(ModelError, match=r"v.gguf: tokenizer.ggml.pre: wanted one of .*got 'klingon'"):
        load_tokenizer(path)


def test_broken_files_are_named(tmp_path):
    """Truncated, empty and merge-less files are ModelErrors."""
    whole = write_gguf_bpe(tmp_path / "v.gguf", [*ALPHABET, "ab"], ["a b"], pre="gpt-2").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 20, 500, len(whole) // 2):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="truncated GGUF file: wanted at least"):
            load_tokenizer(cut)
    path = write_gguf_bpe(tmp_path / "m.gguf", ["ab"], [], pre="gpt-2")
    with pytest.raises(ModelError, match="merges: wanted pairs"):
        load_tokenizer(path)
