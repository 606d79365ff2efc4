"""The requests of OpenAI's responses, as far as this server honours them; see `serve.schema`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tpustream.serve.schema import MAX_TOP_LOGPROBS, OpenModel, SampledRequest, Verbosity

MAX_METADATA = 16


class ContentPart(OpenModel):
    """One part of an item's content: `input_text`, or `output_text` of an earlier answer."""

    type: str
    text: str | None = None


class InputItem(OpenModel):
    """One item of the input: a message, with or without `type: "message"`."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None


class TextFormat(OpenModel):
    """The form of an answer; `type: "text"` is the only one that is honoured."""

    type: str


class TextOptions(OpenModel):
    """How the answer's text should be. The chat template sees `verbosity` as a variable."""

    format: TextFormat | None = None
    verbosity: Verbosity | None = None


class Reasoning(OpenModel):
    """How hard to think; no effort is the only one that is honoured."""

    effort: str | None = None


class ResponsesRequest(SampledRequest):
    """POST /v1/responses.

    Attributes:
      input: a text, or items; none at all leaves the word to the model.
      instructions: a system message of this answer alone.
      previous_response_id: a stored answer that this one goes on from.
      store: keep the answer for later requests; the default.
      background: answer at once, and generate meanwhile.
      truncation: "auto" drops the oldest messages of a conversation that does not fit.
      include: more to answer with, of which this server has log-probabilities.
      top_logprobs: alternatives to each token; asks for log-probabilities too.
      parallel_tool_calls, user, safety_identifier, prompt_cache_key, max_tool_calls: given back as they
        are; there are no tools and no tiers here that they could choose among.
    """

    input: str | Annotated[list[InputItem], Field(fail_fast=True)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    max_tool_calls: int | None = None
    tool_choice: Any = None

    @property
    def logprobs(self) -> int | None:
        """Alternatives to each token, 0 for the token alone, None for no log-probabilities."""
        wanted = "message.output_text.logprobs" in (self.include or ())
        return self.top_logprobs or 0 if wanted or self.top_logprobs else None
