"""Small GGUF files that hold a vocabulary and no tensors."""

from pathlib import Path

import gguf
import sentencepiece


def write_gguf_vocab(
    path: Path, library: sentencepiece.SentencePieceProcessor, *, add_space_prefix: bool
) -> Path:
    """A SentencePiece vocabulary as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    count = library.get_piece_size()
    kinds = [
        gguf.TokenType.UNKNOWN
        if library.is_unknown(token)
        else gguf.TokenType.CONTROL
        if library.is_control(token)
        else gguf.TokenType.BYTE
        if library.is_byte(token)
        else gguf.TokenType.USER_DEFINED
        if library.id_to_piece(token) == "<think>"
        else gguf.TokenType.NORMAL
        for token in range(count)
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([library.id_to_piece(token) for token in range(count)])
    writer.add_token_scores([library.get_score(token) for token in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(library.bos_id())
    writer.add_eos_token_id(library.eos_id())
    writer.add_unk_token_id(library.unk_id())
    writer.add_add_space_prefix(add_space_prefix)
    return _finish(writer, path)


def write_gguf_bpe(
    path: Path, tokens: list[str], merges: list[str], *, pre: str | None, kinds: list[int] | None = None
) -> Path:
    """A byte-level BPE vocabulary as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds or [gguf.TokenType.NORMAL] * len(tokens))
    if merges:
        writer.add_token_merges(merges)
    return _finish(writer, path)


def _finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
