"""The other side of the transformers peer: a program of its own, for an interpreter that has torch.

    python transformers_worker.py MODEL.gguf THREADS

It imports nothing of tpustream. One JSON object a line: first it says what it is ({"ready": versions},
or {"missing": reason}), then for each {"kind", "streams", "prompt", "tokens"} on stdin how many
{"seconds"} the work took. It sleeps while it waits.
"""

import json
import os
import sys
import time


class TokenClock:
    """A streamer of `generate`: notes when each step's tokens are there. Works for every batch."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        """Called with the prompt first, then once a step."""
        self.times.append(time.perf_counter())

    def end(self):
        """Called after the last step."""


def decode_seconds(model, torch, *, streams: int, prompt: int, tokens: int) -> float:
    """Seconds for `tokens` more of each stream, after the first token that the prompt gives."""
    ids = torch.randint(model.config.vocab_size, (streams, prompt))
    clock = TokenClock()
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens + 1,
        max_new_tokens=tokens + 1,
        pad_token_id=0,
        streamer=clock,
    )
    first = 1  # after the prompt
    if len(clock.times) != tokens + 2:
        raise ValueError(f"generate: wanted {tokens + 1} steps, got {len(clock.times) - 1}")
    return clock.times[-1] - clock.times[first]


def prefill_seconds(model, torch, *, tokens: int) -> float:
    """Seconds until the keys and values of one prompt and its last logits are there."""
    ids = torch.randint(model.config.vocab_size, (1, tokens))
    start = time.perf_counter()
    model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


def main(path: str, threads: int) -> None:
    """Serve measurements until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is no answer

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        import gguf  # noqa: F401  (transformers reads the file with it)
        import torch
        import transformers
    except ImportError as error:
        answer(missing=str(error))
        return
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    folder, name = os.path.split(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model.eval()
    prefill_seconds(model, torch, tokens=32)
    decode_seconds(model, torch, streams=1, prompt=32, tokens=2)
    answer(ready={"torch": torch.__version__, "transformers": transformers.__version__, "dtype": "float32"})
    for line in sys.stdin:
        work = json.loads(line)
        if work["kind"] == "prefill":
            seconds = prefill_seconds(model, torch, tokens=work["tokens"])
        else:
            sizes = {name: work[name] for name in ("streams", "prompt", "tokens")}
            seconds = decode_seconds(model, torch, **sizes)
        answer(seconds=seconds)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
