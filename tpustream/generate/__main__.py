"""`python -m tpustream.generate`: an answer to --prompt, or without it a conversation."""

import contextlib
import os
import random
import sys
from collections.abc import Callable

from absl import flags

from tpustream.core.errors import EngineStopped
from tpustream.core.request import SamplingParams
from tpustream.flags import define_engine_flags, define_model_flag, engine_config_from_flags, run_command
from tpustream.generate.answers import encode_messages, show_answer
from tpustream.generate.chat import Chat
from tpustream.runtime import load_runtime
from tpustream.serve.service import ServedRuntime

INTERRUPTED = 130  # the shell's word for Ctrl-C
EXPECTED = (ValueError, OSError, ImportError, EngineStopped)
DEFAULTS = SamplingParams(temperature=0.0)

define_model_flag()
define_engine_flags(slots=1)  # one stream at a time
PROMPT = flags.DEFINE_string("prompt", None, "What to answer; without it, a conversation begins.")
RAW = flags.DEFINE_bool("raw", False, "Continue --prompt as plain text, without the chat template.")
SYSTEM = flags.DEFINE_string("system", None, "System message of the conversation.")
STATS = flags.DEFINE_bool("stats", False, "Print time to first token and tokens a second to stderr.")
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "Tokens to generate at most; without it, until the model ends or the context is full."
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", DEFAULTS.temperature, "Of the sampling; 0 always takes the likeliest token."
)
TOP_K = flags.DEFINE_integer("top_k", DEFAULTS.top_k, "Sample from the k likeliest tokens; 0 for all.")
TOP_P = flags.DEFINE_float("top_p", DEFAULTS.top_p, "Sample from the likeliest tokens that reach p together.")
MIN_P = flags.DEFINE_float("min_p", DEFAULTS.min_p, "Drop tokens below this share of the likeliest.")
REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", DEFAULTS.repetition_penalty, "Above 1: tokens already seen get less likely."
)
FREQUENCY_PENALTY = flags.DEFINE_float(
    "frequency_penalty", DEFAULTS.frequency_penalty, "Subtracted from a token's logit for every use."
)
PRESENCE_PENALTY = flags.DEFINE_float(
    "presence_penalty", DEFAULTS.presence_penalty, "Subtracted from a token's logit once it was used."
)
SEED = flags.DEFINE_integer("seed", None, "The same seed gives the same answer; without it, one is drawn.")
STOP = flags.DEFINE_multi_string("stop", [], "Text that ends an answer and is not shown; may be repeated.")
IGNORE_EOS = flags.DEFINE_bool("ignore_eos", DEFAULTS.ignore_eos, "Go on where the model would end.")


def sampling_from_flags() -> SamplingParams:
    """How to sample, as the flags say. Raises InvalidRequest for a value outside its range."""
    sampling = SamplingParams(
        max_tokens=MAX_TOKENS.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        min_p=MIN_P.value,
        repetition_penalty=REPETITION_PENALTY.value,
        frequency_penalty=FREQUENCY_PENALTY.value,
        presence_penalty=PRESENCE_PENALTY.value,
        seed=random.getrandbits(63) if SEED.value is None else SEED.value,
        stop=tuple(STOP.value),
        ignore_eos=IGNORE_EOS.value,
    )
    sampling.validate()
    return sampling


def answer_once(runtime: ServedRuntime, prompt: str, sampling: SamplingParams) -> int:
    """Print the answer to one prompt; the exit code."""
    if RAW.value or runtime.tokenizer.chat_template is None:
        if SYSTEM.value is not None:
            raise ValueError("--system: wanted a prompt with a chat template, got plain text")
        ids = runtime.tokenizer.encode(prompt)
    else:
        system = [] if SYSTEM.value is None else [{"role": "system", "content": SYSTEM.value}]
        ids = encode_messages(runtime, [*system, {"role": "user", "content": prompt}])
    answer = show_answer(runtime, ids, sampling, id="terminal", out=sys.stdout)
    if STATS.value:
        print(answer.stats(), file=sys.stderr)
    return INTERRUPTED if answer.interrupted else 0


def converse(runtime: ServedRuntime, sampling: SamplingParams) -> int:
    """Talk until the user leaves; the exit code."""
    if runtime.tokenizer.chat_template is None:
        raise ValueError(f"{runtime.name} has no chat template; give --prompt")
    chat = Chat(runtime, sampling, system=SYSTEM.value, out=sys.stdout, notes=sys.stderr, stats=STATS.value)
    if sys.stdin.isatty():
        print(f"{runtime.name}: /help lists commands, Ctrl-D leaves.", file=sys.stderr)
    chat.loop(line_reader())
    return 0


def line_reader() -> Callable[[], str]:
    """Reads a line: with editing and history on a terminal, silently from a pipe."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # a Python without it still reads lines
            import readline  # noqa: F401

        return lambda: input("> ")

    def read() -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    return read


def main(argv: list[str]) -> int:
    """Answer or converse; 0, 1 with one line on stderr for an error, 130 after Ctrl-C."""
    runtime = None
    try:
        if len(argv) > 1:
            raise ValueError(f"wanted flags only, got {argv[1]!r}; the prompt goes to --prompt")
        if RAW.value and PROMPT.value is None:
            raise ValueError("--raw: wanted --prompt as well")
        sampling = sampling_from_flags()
        runtime = load_runtime(flags.FLAGS.model, engine_config_from_flags())
        if PROMPT.value is None:
            return converse(runtime, sampling)
        return answer_once(runtime, PROMPT.value, sampling)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` for example, has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if runtime is not None:
            runtime.stop()


if __name__ == "__main__":
    run_command(main)
