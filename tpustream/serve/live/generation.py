"""LiveGeneration: a Generation of one stream, which may leave the engine and come back while it is open."""

from functools import partial

from tpustream.core.request import FinishReason, Request, SamplingParams, TokenEvent
from tpustream.serve.tokens import Generation


class LiveGeneration(Generation):
    """A Generation whose only stream is what its reader has taken, wherever the engine is with it."""

    def retune(self, sampling: SamplingParams) -> None:
        """Choose a stream's tokens otherwise from here on. Raises InvalidRequest; then nothing changes."""
        if 0 in self._running:
            self._engine.retune(self._requests[0].id, sampling)

    def halt(self) -> None:
        """Take a stream out of the engine where `next` has come to: what came after is dropped. It stays
        open, without a slot, until `proceed` or the end.
        """
        if 0 in self._running:
            self._running.discard(0)
            self._engine.cancel(self._requests[0].id)
        self._requests[0] = None
        self._forget_halted()
        self._backlog.shrank()

    def proceed(self, request: Request) -> None:
        """Go on with a stream that was halted, by a request whose prompt is all that there is of it.

        The text goes on too. Raises as the engine's `submit`; then it is still halted.
        """
        self._requests[0] = request
        try:
            self._engine.submit(request, partial(self._sink, 0, request))
        except BaseException:
            self._requests[0] = None
            raise
        self._running.add(0)

    def cut(self, sampling: SamplingParams) -> str:
        """The text that was held back so far, for it might have become a stop string or a character. What
        comes now is a text of its own, ended by the stop strings of `sampling`.
        """
        held = self._texts[0].push(TokenEvent(finish=FinishReason.CANCELLED))
        self._texts[0] = self._new_text(sampling)
        return held.text

    def add_prompt(self, tokens: int) -> None:
        """So many more tokens of input."""
        self.prompt_tokens += tokens
        self._exchange.prompt_tokens += tokens
        self._exchange.client.spend(tokens)
        self._metrics.entered(tokens)
