"""The terminal's answers and conversation without a process: what is shown, kept and refused."""

import io

import pytest

from tpustream.core.errors import EngineStopped, InvalidRequest
from tpustream.core.request import SamplingParams
from tpustream.generate.answers import show_answer
from tpustream.generate.chat import Chat

from .scripted import FAILURE, ScriptedEngine, ScriptedRuntime, say


@pytest.fixture
def runtime():
    """An engine that says its prompt back."""
    engine = ScriptedEngine(max_prompt=100)
    engine.script = lambda request: say(bytes(request.prompt))
    return ScriptedRuntime(engine=engine)


def show(runtime, prompt, **sampling):
    """(Answer, what was written)."""
    out = io.StringIO()
    params = SamplingParams(**{"seed": 1, **sampling})
    return show_answer(runtime, list(prompt), params, id="t", out=out), out.getvalue()


def converse(runtime, *lines, **options):
    """(the Chat, answers, notes) of a conversation of these lines."""
    out, notes = io.StringIO(), io.StringIO()
    chat = Chat(runtime, SamplingParams(seed=2**64 - 1), out=out, notes=notes, **options)
    given = iter(lines)

    def read():
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    chat.loop(read)
    return chat, out.getvalue(), notes.getvalue()


def test_answer_and_its_figures(runtime):
    """The text as shown, and the tokens that made it."""
    answer, shown = show(runtime, "héy".encode())
    assert (answer.text, shown, answer.tokens, answer.interrupted) == ("héy", "héy\n", 4, False)
    assert answer.first_token >= 0
    assert "4 tokens" in answer.stats()
    nothing, shown = show(runtime, b"x", max_tokens=0)
    assert (nothing.text, shown, nothing.stats()) == ("", "\n", "no tokens")


def test_without_max_tokens_the_rest_of_the_context_is_left(runtime):
    """A model that never ends must not hold the terminal for ever."""
    runtime.engine.script = lambda _: say("x" * 500)
    answer, _ = show(runtime, b"12345678901234567890")
    assert answer.tokens == 80


def test_what_cannot_be_answered(runtime):
    """Refused before the engine; a stream that fails says why."""
    with pytest.raises(InvalidRequest, match="at least one token"):
        show(runtime, b"")
    with pytest.raises(InvalidRequest, match="maximum context length is 100"):
        show(runtime, b"x" * 101)
    runtime.engine.script = lambda _: say("x", end=FAILURE)
    with pytest.raises(EngineStopped, match="NaN in logits"):
        show(runtime, b"x")


def test_commands(runtime):
    """History, system message, help, and a way out."""
    chat, out, notes = converse(
        runtime, "one", "", "  ", "/system S", "two", "/nonsense", "/reset", "three", "/help", "/quit", "no"
    )
    assert out == "u:one\na:\ns:S\nu:two\na:\ns:S\nu:three\na:\n"
    assert "unknown command /nonsense" in notes
    assert "/system TEXT" in notes
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_refused_message_leaves_no_trace(runtime):
    """A message that is too long is not in the way of the next."""
    chat, out, notes = converse(runtime, "y" * 300, "short", stats=True)
    assert "maximum context length is 100" in notes
    assert "/reset to begin anew" in notes
    assert "TTFT" in notes
    assert out == "u:short\na:\n"
    assert len(chat.messages) == 2


def test_seeds_differ_between_answers(runtime):
    """The same question twice may have two answers, and a seed gives both again."""
    converse(runtime, "a", "b")
    assert [request.sampling.seed for request in runtime.engine.requests] == [2**64 - 1, 0]
