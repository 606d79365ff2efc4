"""Random prompts of chosen lengths, as `vllm bench serve --dataset-name random` draws them.

The same seed gives the same requests. Says nothing about when they are sent or in which dialect.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

# A vocabulary's first ids are often control tokens, which would end or reshape a prompt.
SKIPPED_SHARE = 1 / 32

# Short words that are one token, with the space before it, in any usual vocabulary.
WORDS = (
    "air all arm art bag bed big bit box boy bus car cat city cold cup dark day door down dry ear east "
    "end eye face far farm fire fish five food foot four game girl gold good hand hard hat head high hill "
    "home horse house ice job key king land last late left life line long look lost love low man map mind "
    "moon music name new night north old one open page part path plan plant rain red rest rice ring river "
    "road rock room sea seat seven ship shop short side six sky small snow song south star stone story "
    "street sun table tall ten three time town tree two wall war warm water way week west white wind wood"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One request of a benchmark.

    Attributes:
      index: its place in the run, from 0.
      prompt: token ids for completions, a text of words for chat.
      input_len: tokens of the prompt; for a text, its words, which the chat template adds to.
      output_len: tokens to ask for.
    """

    index: int
    prompt: tuple[int, ...] | str
    input_len: int
    output_len: int


def random_requests(
    count: int,
    *,
    input_len: int,
    output_len: int,
    range_ratio: float,
    vocabulary: int,
    chat: bool,
    seed: int | Sequence[int],
) -> list[SampleRequest]:
    """`count` requests with random prompts.

    Args:
      input_len, output_len: tokens; each request draws its own, uniformly from
        [floor(length * (1 - range_ratio)), ceil(length * (1 + range_ratio))], at least 1.
      vocabulary: token ids are drawn below it, and not from its first 1/32.
      chat: prompts are texts instead of token ids.

    Raises ValueError for a number out of range.
    """
    numbers = {"random_input_len": input_len, "random_output_len": output_len, "vocab_size": vocabulary}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: wanted at least 1, got {value}")
    if not 0 <= range_ratio < 1:
        raise ValueError(f"random_range_ratio: wanted 0 <= ratio < 1, got {range_ratio:g}")
    random = np.random.default_rng(seed)
    inputs = _lengths(random, count, input_len, range_ratio)
    outputs = _lengths(random, count, output_len, range_ratio)
    requests = []
    for index in range(count):
        length = int(inputs[index])
        if chat:
            prompt = " ".join(random.choice(WORDS.split(), length))
        else:
            first = math.floor(vocabulary * SKIPPED_SHARE)
            prompt = tuple(random.integers(first, vocabulary, length).tolist())
        requests.append(
            SampleRequest(index=index, prompt=prompt, input_len=length, output_len=int(outputs[index]))
        )
    return requests


def _lengths(random: np.random.Generator, count: int, length: int, ratio: float) -> np.ndarray:
    low, high = max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio))
    return random.integers(low, high, count, endpoint=True)
