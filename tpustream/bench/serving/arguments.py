"""Command lines as `vllm bench serve` takes them, made readable for absl."""

import re
from collections.abc import Sequence

FLAG = re.compile(r"(--?)([A-Za-z][\w-]*)(=.*)?", re.DOTALL)
PAIR = re.compile(r"\w+:[\d.]+")


def absl_arguments(argv: Sequence[str]) -> list[str]:
    """`argv` with underscores in the names of flags (`--base-url` is `--base_url`), and with the
    words of `--goodput ttft:200 tpot:50` joined by commas. Words after `--` stay as they are.
    """
    out, words = list(argv[:1]), list(argv[1:])
    while words:
        word = words.pop(0)
        if word == "--":
            return [*out, word, *words]
        flag = FLAG.fullmatch(word)
        if flag is None:
            out.append(word)
            continue
        dashes, name, value = flag.groups()
        out.append(dashes + name.replace("-", "_") + (value or ""))
        if name == "goodput":
            pairs = [value[1:]] if value else []
            while words and PAIR.fullmatch(words[0]):
                pairs.append(words.pop(0))
            if pairs:
                out[-1] = f"{dashes}goodput={','.join(pairs)}"
    return out
