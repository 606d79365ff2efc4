"""PromptScores: what a model makes of a prompt without going on from it."""

import dataclasses

import numpy as np

from tpustream.core.request import TokenLogprobs


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PromptScores:
    """One prompt of n tokens.

    Attributes:
      hidden: f32[D], the mean over all tokens of the hidden states after the final norm.
      logprobs: of the tokens 1..n-1, each after all before it; empty where nobody asked.
    """

    hidden: np.ndarray
    logprobs: tuple[TokenLogprobs, ...]
