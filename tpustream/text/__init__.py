"""Text on both sides of the engine: chat templates, tokenizers, detokenizing. No jax, no models."""

from tpustream.text.chat_template import ChatTemplate
from tpustream.text.detokenizer import Detokenizer
from tpustream.text.tokenizer import load_tokenizer
from tpustream.text.vocabulary import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Tokenizer", "load_tokenizer"]
