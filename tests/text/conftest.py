"""A small SentencePiece model, trained on the spot."""

from pathlib import Path

import pytest
import sentencepiece

from .vocabularies import LINES


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.model trained here: BPE, byte fallback, a space before every text."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        control_symbols=["<|turn|>"],
        user_defined_symbols=["<think>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder
