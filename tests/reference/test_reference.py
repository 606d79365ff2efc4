"""Checks of the references that are not right at first sight."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.goldens.families import FAMILIES, golden, weights, write_model
from tests.reference.attention import attend
from tests.reference.decoder import logits
from tests.reference.ring import ListCache
from tests.reference.rope import frequencies
from tests.reference.sampling import adjust, distribution, log_probabilities


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_agrees_with_transformers(family):
    """Two implementations that share no code agree on every family, so the goldens can be trusted."""
    expected, tensors = golden(family), weights(family)
    for tokens, wanted in zip(expected.tokens, expected.logits, strict=True):
        np.testing.assert_allclose(logits(tensors, expected.config, tokens), wanted, rtol=0, atol=1e-4)


def test_sharded_checkpoint_holds_every_tensor_once(tmp_path):
    """A loader's shard tests stand on a checkpoint whose index names each tensor's only file."""
    write_model("qwen2", tmp_path, shards=3)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in sorted(set(index.values())):
        part = load_file(tmp_path / file)
        assert all(index[name] == file for name in part)
        found |= part
    assert {name: array.shape for name, array in found.items()} == golden("qwen2").tensors


def _columns(generator, count, kv_heads, head_dim):
    """(position, key [K, H], value [K, H]) of a stream's first `count` tokens."""
    keys, values = generator.standard_normal((2, count, kv_heads, head_dim))
    return list(zip(range(count), keys, values, strict=True))


def test_attention_without_wrap_is_softmax_over_relative_distance():
    """Rotating by absolute positions, sinks or not, is plain attention until the ring wraps."""
    generator = np.random.default_rng(0)
    columns = _columns(generator, 7, 2, 6)
    query = generator.standard_normal((4, 6))
    rope, _ = frequencies({"rope_type": "default", "rope_theta": 100.0}, 6)
    given = {"position": 6, "frequencies": rope, "scale": 0.4, "softcap": 3.0}
    plain = attend(query, columns, **given)
    np.testing.assert_array_equal(attend(query, columns, sinks=2, ring=5, **given), plain)
    shifted = [(position + 1000, key, value) for position, key, value in columns]
    np.testing.assert_allclose(attend(query, shifted, **given | {"position": 1006}), plain, atol=1e-9)


def test_attention_after_wrap_is_attention_over_a_renumbered_cache():
    """StreamingLLM's definition: visible tokens count as if they stood at 0, 1, 2, ... in the cache."""
    generator = np.random.default_rng(1)
    sinks, ring, length = 2, 5, 40
    cache = ListCache(sinks + ring, sinks)
    for position, key, value in _columns(generator, length, 2, 6):
        cache.append(position, (key, value))
    visible = [(position, *item) for position, item in cache.visible()]
    renumbered = [(index, key, value) for index, (_, key, value) in enumerate(visible)]
    query = generator.standard_normal((4, 6))
    rope, _ = frequencies({"rope_type": "default", "rope_theta": 100.0}, 6)
    given = {"frequencies": rope, "scale": 0.4}
    streamed = attend(query, visible, position=length - 1, sinks=sinks, ring=ring, **given)
    np.testing.assert_allclose(streamed, attend(query, renumbered, position=6, **given), atol=1e-9)


@pytest.mark.parametrize(
    ("window", "wanted"), [(None, [0, 1, 17, 18, 19]), (3, [17, 18, 19]), (5, [0, 1, 17, 18, 19])]
)
def test_ring_shows_sinks_and_the_last(window, wanted):
    """What is visible after many wraps is exactly the sinks and the newest, or the window."""
    cache = ListCache(5, 2, window)
    for position in range(20):
        cache.append(position, None)
    assert [position for position, _ in cache.visible()] == wanted


def test_sampling_filters_by_hand():
    """Filters and penalties on four tokens whose results can be computed on paper."""
    row = np.log(np.array([0.1, 0.4, 0.3, 0.2]))
    assert distribution(row) == pytest.approx({1: 0.4, 2: 0.3, 3: 0.2, 0: 0.1})
    assert distribution(row, top_k=2) == pytest.approx({1: 4 / 7, 2: 3 / 7})
    assert list(distribution(row, top_p=0.69)) == [1, 2]
    assert list(distribution(row, top_p=0.71)) == [1, 2, 3]
    assert list(distribution(row, min_p=0.6)) == [1, 2]
    assert list(distribution(row, top_p=1e-9)) == [1]
    assert distribution(row, temperature=0) == {1: 1.0}
    assert distribution(row, temperature=0.5)[1] == pytest.approx(0.16 / 0.3)
    assert list(distribution(np.zeros(4), top_k=2)) == [0, 1]
    penalised = adjust(
        np.array([1.0, -1.0, 2.0, 0.0]),
        logit_bias={3: 5.0},
        repetition_penalty=2.0,
        frequency_penalty=0.25,
        presence_penalty=0.5,
        prompt=[0, 1],
        output=[2, 2, 1],
    )
    np.testing.assert_allclose(penalised, [0.5, -2.75, 0.0, 5.0])
    np.testing.assert_allclose(np.exp(log_probabilities(row + 7)), [0.1, 0.4, 0.3, 0.2])
