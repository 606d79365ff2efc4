"""load_tokenizer: from a GGUF file or a model folder to a Tokenizer.

Knows which file holds what kind of vocabulary; bpe.py and sentencepiece_vocab.py know the vocabularies.
"""

from pathlib import Path

from tpustream.core.errors import ModelError
from tpustream.text.bpe import bpe_from_gguf, bpe_from_json
from tpustream.text.folder import read_folder
from tpustream.text.gguf_vocab import read_gguf_vocab
from tpustream.text.sentencepiece_vocab import sentencepiece_from_gguf, sentencepiece_from_model
from tpustream.text.vocabulary import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
      path: a .gguf file, or a folder with tokenizer.json (preferred) or tokenizer.model, and with
        what Hugging Face keeps beside them: tokenizer_config.json, chat_template.jinja,
        generation_config.json, special_tokens_map.json.

    Raises:
      ModelError: no such file, a truncated one, or a kind of vocabulary that is not supported.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return bpe_from_json(path / "tokenizer.json", read_folder(path))
        if (path / "tokenizer.model").is_file():
            return sentencepiece_from_model(path / "tokenizer.model", read_folder(path))
        names = sorted(entry.name for entry in path.iterdir())[:20]
        raise ModelError(f"{path}: wanted tokenizer.json or tokenizer.model, got {names}")
    if not path.is_file():
        raise ModelError(f"{path}: wanted a .gguf file or a model folder, got nothing there")
    if path.suffix != ".gguf":
        raise ModelError(f"{path}: wanted a .gguf file or a model folder, got a file named {path.name!r}")
    vocab = read_gguf_vocab(path)
    if vocab.model == "gpt2":
        return bpe_from_gguf(vocab)
    if vocab.model == "llama":
        return sentencepiece_from_gguf(vocab)
    raise ModelError(f"{path}: tokenizer.ggml.model: wanted 'gpt2' or 'llama', got {vocab.model!r}")
