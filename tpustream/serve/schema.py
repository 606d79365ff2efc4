"""The requests of OpenAI's chat and text completions, as far as this server honours them.

Types are strict: a string or a boolean is no number. Fields that nobody knows are accepted and have
no effect; fields that clients know and this server cannot honour are refused (see `refused`).
Ranges are checked by `core.request.SamplingParams`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_CANDIDATES = 20
MAX_DEADLINE_MS = 24 * 60 * 60 * 1000  # a day

Prompts = (
    str
    | Annotated[list[str], Field(fail_fast=True)]
    | Annotated[list[int], Field(fail_fast=True)]
    | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
)
Verbosity = Literal["low", "medium", "high"]


class OpenModel(BaseModel):
    """Strict about types, open to more fields."""

    model_config = ConfigDict(extra="allow", strict=True)


class StreamOptions(OpenModel):
    """What a stream carries beside text.

    Attributes:
      include_usage: one more chunk at the end, with `choices: []` and the usage.
      include_obfuscation: random text in a field `obfuscation` evens out the sizes of chunks.
      continuous_usage_stats: the usage so far on every chunk (vLLM's extension).
      include_prefill_progress: while the prompt is prefilled, chunks with `choices: []` and
        `prefill_progress: {"done": tokens, "total": tokens}`.
      resumable: the stream goes on for a while without its client, who may come back for the rest.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None
    include_prefill_progress: bool | None = None
    resumable: bool | None = None


class SamplingFields(OpenModel):
    """How tokens are chosen, by the names of OpenAI's completions. `None` always means the default.

    Attributes:
      top_k, min_p, repetition_penalty, stop_token_ids, ignore_eos: vLLM's extensions.
    """

    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    top_k: int | None = None
    min_p: FiniteFloat | None = None
    repetition_penalty: FiniteFloat | None = None
    frequency_penalty: FiniteFloat | None = None
    presence_penalty: FiniteFloat | None = None
    logit_bias: dict[str, FiniteFloat] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None


class QueuedFields(OpenModel):
    """Who answers, and when at the latest.

    Attributes:
      model: name of the served model; the only one when absent.
      priority: a lower value is served earlier, 0 when absent (vLLM's extension).
      deadline_ms: milliseconds within which the answer must have begun to be computed; one that waits
        longer for a slot ends with the error `deadline_exceeded`. An answer that runs is never cut short.
    """

    model: str | None = None
    priority: int | None = None
    deadline_ms: Annotated[int, Field(gt=0, le=MAX_DEADLINE_MS)] | None = None


class SampledRequest(SamplingFields, QueuedFields):
    """Fields that every generating route shares."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None


class GenerationRequest(SampledRequest):
    """Fields that the completion routes share.

    Attributes:
      n: choices for each prompt.
    """

    max_tokens: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None


class ContentPart(OpenModel):
    """One part of a message's content. Only `type: "text"` is honoured."""

    type: str
    text: str | None = None


class Message(OpenModel):
    """One message of a conversation."""

    role: str
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions.

    Attributes:
      max_completion_tokens: OpenAI's newer name of max_tokens.
      logprobs, top_logprobs: log-probabilities of the tokens, and of that many alternatives.
      chat_template_kwargs: more variables for the chat template (vLLM's extension).
      verbosity: a hint, which the chat template sees as a variable of this name.
    """

    messages: Annotated[list[Message], Field(fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    verbosity: Verbosity | None = None


class EmbeddingRequest(OpenModel):
    """POST /v1/embeddings.

    Attributes:
      input: as the prompt of a text completion, of which each gives one vector.
      encoding_format: numbers, or the bytes of little-endian float32.
      dimensions: the first so many numbers, made a unit vector again.
    """

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class TokenizeRequest(OpenModel):
    """POST /tokenize: of vLLM's form, either a text or a conversation.

    Attributes:
      add_special_tokens: put in front of the prompt what the tokenizer puts there; of a conversation
        the template writes it, so the default is not to.
      add_generation_prompt: end a conversation where the answer begins.
      return_token_strs: the tokens as texts as well.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(OpenModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


class CompletionRequest(GenerationRequest):
    """POST /v1/completions.

    Attributes:
      prompt: a text, token ids, or a list of either.
      echo: the prompt's text comes first.
      best_of: candidates for each prompt, of which the `n` likeliest are answered; 0 is no choosing.
      logprobs: log-probabilities of the tokens and of that many alternatives.
    """

    prompt: Prompts
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=0, le=MAX_CANDIDATES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
