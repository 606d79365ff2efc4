"""Record smollm2.json: python -m tests.goldens.make_smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf

The file asks for the pre-tokenizer "smollm": digits stand alone, then the words of GPT-2. transformers'
GGUF reader leaves the digits out, which differs where several spaces stand before a digit, so the
pre-tokenizer is set here to what the model's own tokenizer.json declares.
"""

from pathlib import Path

from tokenizers import pre_tokenizers

from tests.goldens.causal import gguf_argument, load_tokenizer, record
from tests.goldens.prompts import CHAT, RAW


def main() -> None:
    """Greedy text of SmolLM2-135M-Instruct, chat and raw prompts."""
    gguf = gguf_argument(__doc__)
    tokenizer = load_tokenizer(gguf)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    chats = {
        name: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for name, messages in CHAT.items()
    }
    record(
        gguf,
        {**chats, **RAW},
        tokenizer=tokenizer,
        encode=lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
        max_tokens=56,
        target=Path(__file__).parent / "smollm2.json",
    )


if __name__ == "__main__":
    main()
