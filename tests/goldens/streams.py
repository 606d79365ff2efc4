"""Read the greedy streams that transformers generated from real GGUF files (see causal.py)."""

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One prompt and its greedy continuation in float32.

    Attributes:
      name: of the prompt.
      prompt: the final text, chat template applied; without BOS.
      prompt_ids: its token ids, with BOS where the model wants one.
      generated_ids: an EOS that ended the stream is the last of them.
      logprobs: natural log of the probability of each generated id.
      margins: logit of the best token minus that of the second best at each step. Where it is below
        the error of the arithmetic in use, another token is no fault.
      text: the generated ids without EOS, decoded; a character cut in two at the end is U+FFFD.
      finish: "stop" for EOS, else "length".
    """

    name: str
    prompt: str
    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    margins: tuple[float, ...]
    text: str
    finish: str


def streams(golden: str) -> dict[str, Stream]:
    """The streams of "smollm2" or "gemma3_270m" by name. Raises FileNotFoundError for another."""
    data = json.loads((Path(__file__).parent / f"{golden}.json").read_text(encoding="utf-8"))
    out = {}
    for fields in data["streams"]:
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        out[fields["name"]] = Stream(**frozen)
    return out


def model_sha256(golden: str) -> str:
    """SHA-256 of the GGUF file that the golden was recorded with."""
    data = json.loads((Path(__file__).parent / f"{golden}.json").read_text(encoding="utf-8"))
    return data["sha256"]
