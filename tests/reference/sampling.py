"""How a row of logits becomes a distribution, in float64, one token at a time.

The order: logit bias, repetition penalty, frequency and presence penalties (`adjust`), then
temperature, min-p, top-k, top-p (`distribution`). Each filter sees the renormalised result of the one
before. Equal logits are ranked by the smaller id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


def adjust(
    logits: np.ndarray,
    *,
    logit_bias: Mapping[int, float] | None = None,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
) -> np.ndarray:
    """Logits [V] after bias and penalties, f64[V].

    The repetition penalty (Keskar et al. 2019, section 4.1; signs as in Hugging Face) counts prompt
    and output; the frequency and presence penalties (OpenAI's API reference) count output only.
    """
    out = np.array(logits, np.float64)
    for token, bias in (logit_bias or {}).items():
        out[token] += bias
    for token in {*prompt, *output}:
        out[token] = out[token] / repetition_penalty if out[token] > 0 else out[token] * repetition_penalty
    for token, count in Counter(output).items():
        out[token] -= frequency_penalty * count + presence_penalty
    return out


def distribution(
    logits: np.ndarray, *, temperature: float = 1.0, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> dict[int, float]:
    """The tokens that may be drawn -> their probability, most likely first.

    Args:
      logits: [V], after `adjust`.
      temperature: 0 keeps the most likely token alone.
      min_p: drops tokens less likely than min_p times the most likely.
      top_k: keeps the k most likely tokens; 0 keeps all.
      top_p: keeps the shortest run of most likely tokens whose probability reaches p (Holtzman et
        al. 2019, section 3.1); never fewer than one.
    """
    values = np.asarray(logits, np.float64)
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if temperature == 0:
        return {ranked[0]: 1.0}
    scaled = values / temperature
    kept = _normalised(scaled, ranked)
    threshold = min_p * kept[ranked[0]]
    kept = _normalised(scaled, [token for token in kept if kept[token] >= threshold])
    if top_k > 0:
        kept = _normalised(scaled, list(kept)[:top_k])
    nucleus, reached = [], 0.0
    for token, probability in kept.items():
        if nucleus and top_p < 1 and reached >= top_p:
            break
        nucleus.append(token)
        reached += probability
    return _normalised(scaled, nucleus)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural log of softmax, f64[V]."""
    values = np.asarray(logits, np.float64)
    largest = values.max()
    return values - largest - np.log(np.exp(values - largest).sum())


def _normalised(scaled: np.ndarray, tokens: list[int]) -> dict[int, float]:
    weights = np.exp(scaled[tokens] - scaled[tokens].max())
    return dict(zip(tokens, (weights / weights.sum()).tolist(), strict=True))
