"""Command lines of `vllm bench serve`."""

import pytest

from tpustream.bench.serving.arguments import absl_arguments


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("--base-url=http://a-b:1 --ignore-eos", "--base_url=http://a-b:1 --ignore_eos"),
        ("--base_url http://a-b:1 -num-prompts 3", "--base_url http://a-b:1 -num_prompts 3"),
        ("--noignore-eos --model a-b/c-d", "--noignore_eos --model a-b/c-d"),
        ("--goodput ttft:200 tpot:50.5 --seed 1", "--goodput=ttft:200,tpot:50.5 --seed 1"),
        ("--goodput=ttft:200 e2el:9 word", "--goodput=ttft:200,e2el:9 word"),
        ("--goodput=ttft:200,tpot:50", "--goodput=ttft:200,tpot:50"),
        ("--goodput wrong", "--goodput wrong"),
        ("--temperature -1.5 -- --left-alone", "--temperature -1.5 -- --left-alone"),
    ],
)
def test_both_spellings_are_read(given, read):
    """Dashes in names become underscores, values stay, and --goodput takes several words."""
    assert absl_arguments(["a-b.py", *given.split()]) == ["a-b.py", *read.split()]
