"""From a conversation to the tokens of a prompt, without its oldest messages where it is too long."""

from collections.abc import Sequence

from tpustream.core.errors import InvalidRequest
from tpustream.serve.chat import encode_chat
from tpustream.serve.service import ServedRuntime
from tpustream.text.chat_template import ChatTemplate

NOTHING = {"role": "user", "content": ""}  # a request may come without an input


def encode_conversation(
    runtime: ServedRuntime,
    template: ChatTemplate,
    instructions: str | None,
    messages: Sequence[dict[str, str]],
    *,
    truncate: bool,
    verbosity: str | None,
) -> list[int]:
    """Token ids of a conversation, up to where the answer begins.

    With `truncate`, as few of the oldest messages as possible are left out where the whole does not fit;
    instructions, system messages and the last message stay. Raises InvalidRequest.
    """
    variables = {"verbosity": verbosity} if verbosity else {}
    before = [{"role": "system", "content": instructions}] if instructions is not None else []

    def encode(dropped: int) -> list[int]:
        old = [message for message in messages[:dropped] if message["role"] == "system"]
        conversation = [*before, *old, *messages[dropped:]] or [NOTHING]
        try:
            return encode_chat(runtime, template, conversation, variables, param="input")
        except InvalidRequest as error:
            raise InvalidRequest(str(error), param="input", code=error.code) from error

    try:
        return encode(0)
    except InvalidRequest as error:
        if not truncate or error.code != "context_length_exceeded" or len(messages) < 2:
            raise
    low, high = 1, len(messages) - 1
    fitting = encode(high)
    while low < high:
        middle = (low + high) // 2
        try:
            fitting, high = encode(middle), middle
        except InvalidRequest:
            low = middle + 1
    return fitting
