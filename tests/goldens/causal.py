"""Record what transformers generates greedily from a GGUF file, in float32 with eager attention.

Shared by make_smollm2.py and make_gemma3.py; needs torch and transformers 5.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]


def gguf_argument(description: str) -> Path:
    """The path given with --gguf."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--gguf", type=Path, required=True, help="the model file to record")
    return parser.parse_args().gguf


def load_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """transformers' reading of the file's tokenizer."""
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


def record(
    gguf: Path,
    prompts: Mapping[str, str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
    max_tokens: int,
    target: Path,
) -> None:
    """Write a JSON golden.

    Every entry of "streams" holds: name; prompt (the final text, template applied); prompt_ids;
    generated_ids (an EOS at the end is part of them); logprobs (natural log, of each generated id);
    margins (logit of the best token minus that of the second, at each step); text (the generated ids
    without EOS, decoded; a character that the end cuts in two shows as U+FFFD); finish ("stop" for
    EOS, else "length").
    """
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    eos = model.config.eos_token_id
    streams = []
    for name, prompt in prompts.items():
        prompt_ids = encode(prompt)
        steps = _greedy(model, prompt_ids, eos=eos, max_tokens=max_tokens)
        generated = [step["id"] for step in steps]
        stopped = generated[-1] == eos
        shown = generated[:-1] if stopped else generated
        streams.append(
            {
                "name": name,
                "prompt": prompt,
                "prompt_ids": prompt_ids,
                "generated_ids": generated,
                "logprobs": [round(step["logprob"], 5) for step in steps],
                "margins": [round(step["margin"], 5) for step in steps],
                "text": tokenizer.backend_tokenizer.decode(shown, skip_special_tokens=False),
                "finish": "stop" if stopped else "length",
            }
        )
        print(
            f"{name:12s} prompt {len(prompt_ids):4d}  generated {len(generated):3d}  {streams[-1]['text']!r}"
        )
    golden = {
        "file": gguf.name,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "recorded_with": "transformers, float32, eager attention, greedy",
        "eos_id": eos,
        "streams": streams,
    }
    target.write_text(_readable(golden), encoding="utf-8")


@torch.no_grad()
def _greedy(model: torch.nn.Module, prompt: list[int], *, eos: int, max_tokens: int) -> list[dict[str, Any]]:
    inputs, past, steps = torch.tensor([prompt]), None, []
    while len(steps) < max_tokens and not (steps and steps[-1]["id"] == eos):
        result = model(inputs, past_key_values=past, use_cache=True)
        past, row = result.past_key_values, result.logits[0, -1].double()
        best, second = torch.topk(row, 2).values.tolist()
        token = int(row.argmax())
        logprob = float(torch.log_softmax(row, dim=-1)[token])
        steps.append({"id": token, "logprob": logprob, "margin": best - second})
        inputs = torch.tensor([[token]])
    return steps


def _readable(golden: dict[str, Any]) -> str:
    """JSON with one line a field of a stream, so that a difference can be read."""
    head = {key: value for key, value in golden.items() if key != "streams"}
    lines = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "streams": [\n'
    blocks = [
        "  {\n"
        + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in s.items())
        + "\n  }"
        for s in golden["streams"]
    ]
    return lines + ",\n".join(blocks) + "\n ]\n}\n"
