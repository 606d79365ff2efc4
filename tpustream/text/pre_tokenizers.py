"""Pre-tokenizers of byte-level BPE vocabularies, by the names that GGUF files give them.

A GGUF file holds a vocabulary and merges but only the name of the rule that cuts text into words
before merging. Names as in llama.cpp (src/llama-vocab.cpp, `tokenizer_pre`), rules as in the models'
own tokenizer.json files, which llama.cpp follows. Knows nothing of vocabularies.
"""

import dataclasses
from types import MappingProxyType

from tokenizers import Regex, normalizers, pre_tokenizers

from tpustream.core.errors import ModelError

GPT2 = None
"""The pattern of GPT-2 is built into the ByteLevel pre-tokenizer."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_PUNCTUATION}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}|\p{{N}}{{1,3}}|{_PUNCTUATION}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How text is cut into words before merging.

    Attributes:
      pattern: regex whose matches are the words; None for GPT-2's.
      single_digits: every digit is a word, cut before the pattern looks.
      compose: text is brought into Unicode form NFC first.
      whole_words: a word that is in the vocabulary is taken whole, whatever its merges.
      add_bos: whether BOS is added where a file does not say (as llama.cpp does).
    """

    pattern: str | None = GPT2
    single_digits: bool = False
    compose: bool = False
    whole_words: bool = False
    add_bos: bool = False

    @property
    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to the text first."""
        return normalizers.NFC() if self.compose else None

    @property
    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Cuts into words and spells their bytes in the byte-level alphabet."""
        steps = [pre_tokenizers.Digits(individual_digits=True)] if self.single_digits else []
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)


_LLAMA3_RULE = SplitRule(pattern=LLAMA3, whole_words=True, add_bos=True)
_RULES = {
    SplitRule(): ("gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "trillion"),
    SplitRule(single_digits=True): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
    _LLAMA3_RULE: ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    SplitRule(pattern=LLAMA3): ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"),
    SplitRule(pattern=QWEN2, compose=True): ("qwen2", "deepseek-r1-qwen", "kormo", "megrez"),
    SplitRule(pattern=QWEN2): ("stablelm2", "hunyuan"),
    SplitRule(pattern=TEKKEN, whole_words=True, add_bos=True): ("tekken",),
    SplitRule(pattern=GPT4O): ("gpt-4o", "llama4"),
}
RULES = MappingProxyType({name: rule for rule, names in _RULES.items() for name in names})


def split_rule(name: str | None) -> SplitRule:
    """The rule that a GGUF file names in tokenizer.ggml.pre. Raises ModelError for an unknown name."""
    if name not in RULES:
        raise ModelError(f"tokenizer.ggml.pre: wanted one of {sorted(RULES)}, got {name!r}")
    return RULES[name]
