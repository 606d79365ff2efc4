"""A conversation on a terminal: reads lines, keeps the history, obeys a few commands."""

import dataclasses
from collections.abc import Callable
from typing import TextIO

from tpustream.core.errors import InvalidRequest
from tpustream.core.request import SamplingParams
from tpustream.generate.answers import encode_messages, show_answer
from tpustream.serve.service import ServedRuntime

HELP = """\
/help         this text
/reset        forget the conversation
/system TEXT  set the system message (without TEXT: none) and forget the conversation
/quit         leave; Ctrl-D and Ctrl-C at the prompt do the same
Ctrl-C during an answer ends the answer; what was said stays in the conversation.
"""
SEED_RANGE = 2**64


class Chat:
    """One conversation.

    Args:
      sampling: of every answer; the seed counts up from answer to answer.
      system: the system message, or None.
      out: where answers go.
      notes: where errors, help and figures go.
      stats: whether to write the figures of every answer.

    Attributes:
      messages: the conversation so far, the system message not included.
    """

    def __init__(
        self,
        runtime: ServedRuntime,
        sampling: SamplingParams,
        *,
        system: str | None = None,
        out: TextIO,
        notes: TextIO,
        stats: bool = False,
    ):
        self.messages: list[dict[str, str]] = []
        self._runtime = runtime
        self._sampling = sampling
        self._system = system
        self._out = out
        self._notes = notes
        self._stats = stats
        self._asked = 0

    def loop(self, read: Callable[[], str]) -> None:
        """Answer the lines that `read` gives until it raises EOFError or KeyboardInterrupt, or /quit."""
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self.ask(line)

    def ask(self, text: str) -> None:
        """Answer one message of the user. A message that is refused leaves no trace."""
        asked = [*self.messages, {"role": "user", "content": text}]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + self._asked) % SEED_RANGE)
        self._asked += 1
        try:
            prompt = encode_messages(self._runtime, system + asked)
            answer = show_answer(self._runtime, prompt, sampling, id=f"terminal-{self._asked}", out=self._out)
        except InvalidRequest as error:
            hint = " Use /reset to begin anew." if error.code == "context_length_exceeded" else ""
            self._note(f"error: {error}{hint}")
            return
        if self._stats:
            self._note(f"[{answer.stats()}]")
        if answer.text or not answer.interrupted:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name == "/help":
            self._notes.write(HELP)
        elif name == "/reset":
            self.messages = []
        elif name == "/system":
            self._system = argument.strip() or None
            self.messages = []
        else:
            self._note(f"error: unknown command {name}; /help lists them")

    def _note(self, line: str) -> None:
        self._notes.write(line + "\n")
        self._notes.flush()
