"""What the routes share: the runtime once it is loaded, and who may come in.

A Service is loading, ready, failed or draining. It knows every generation, so that a shutdown can end
them in order. How much may wait is the engine's to say. It lives on one event loop; only `attach` and
`fail` may be called from elsewhere.
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from tpustream import __version__
from tpustream.config import EngineConfig
from tpustream.control.engine_stream import TokenEngine
from tpustream.core.engine_stats import EngineStats
from tpustream.core.errors import EngineStopped
from tpustream.core.prompt_scores import PromptScores
from tpustream.serve.errors import ApiError, unavailable
from tpustream.serve.observe.metrics import CompileCount, Metrics
from tpustream.text.chat_template import ChatTemplate
from tpustream.text.vocabulary import Tokenizer

RETRY_LOADING = 5
RETRY_DRAINING = 30


class ServedEngine(TokenEngine, Protocol):
    """What serving asks of an engine."""

    config: EngineConfig
    max_prompt: int
    vocab_size: int
    embed_dim: int
    stopped: str | None
    running: int
    waiting: int

    def check_room(self, requests: int) -> None:
        """Raise QueueFull when this many more would be refused now."""

    def stats(self) -> EngineStats:
        """What it tells whoever watches."""

    def score(self, prompt: Sequence[int], *, logprobs: int | None = None) -> "Future[PromptScores]":
        """Score a prompt; see `engine.Engine.score`."""


class ServedRuntime(Protocol):
    """A loaded model: `tpustream.runtime.Runtime` is one."""

    engine: ServedEngine
    tokenizer: Tokenizer
    name: str
    compile_guard: CompileCount

    def stop(self) -> None:
        """End every stream and what runs behind it."""


class Endable(Protocol):
    """A generation, as a shutdown sees it."""

    def end(self, error: ApiError) -> None: ...


class Service:
    """State of one server.

    Args:
      names: what clients may call the model, the first one is reported; () means its own name.
      metrics: what counts everything that happens.

    Attributes:
      runtime: None until `attach`.
      chat_template: the model's, None until `attach`.
      ready_since: when the model was loaded, by time.monotonic; None until `attach`.
      failure: why loading failed, or None.
      generations: what is being answered.
    """

    def __init__(self, *, names: tuple[str, ...] = (), metrics: Metrics):
        self.metrics = metrics
        self.runtime: ServedRuntime | None = None
        self.chat_template: ChatTemplate | None = None
        self.names = names
        self.fingerprint = ""
        self.failure: str | None = None
        self.ready_since: float | None = None
        self.generations: set[Endable] = set()
        self._draining = False

    def attach(self, runtime: ServedRuntime) -> None:
        """The model is loaded: from now on requests are answered."""
        tokenizer = runtime.tokenizer
        self.chat_template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
        self.names = self.names or (runtime.name,)
        identity = repr((runtime.name, runtime.engine.config, __version__))
        self.fingerprint = "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.metrics.attach(runtime)
        self.ready_since = time.monotonic()
        self.runtime = runtime  # last: what sees it may use all of the above

    def fail(self, reason: str) -> None:
        """Loading failed: requests are told so."""
        self.failure = reason

    def ready(self) -> ServedRuntime:
        """The runtime. Raises ApiError 503, or EngineStopped, with the reason while there is none to use."""
        if self._draining:
            raise shutting_down()
        if self.failure is not None:
            raise unavailable(f"The model could not be loaded: {self.failure}", RETRY_DRAINING, "load_failed")
        if self.runtime is None:
            raise unavailable("The model is still loading", RETRY_LOADING, "loading")
        if self.runtime.engine.stopped is not None:
            raise EngineStopped(self.runtime.engine.stopped)
        return self.runtime

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError 404 for a model that is not served."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            message = f"The model {name!r} does not exist; this server has {', '.join(map(repr, self.names))}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    def check_room(self, streams: int, param: str) -> None:
        """Whether `streams` more may come. Raises QueueFull: not now; ApiError 400: never."""
        engine = self.ready().engine
        room = engine.config.max_requests
        if streams > room:
            raise ApiError(400, f"{param}: wanted at most {room} choices in all, got {streams}", param=param)
        engine.check_room(streams)

    def refuse_new(self) -> None:
        """From now on nobody comes in; who is in may finish."""
        self._draining = True

    def end_all(self) -> None:
        """End every generation with an error that says that the server is shutting down."""
        for generation in tuple(self.generations):
            generation.end(shutting_down())


def shutting_down() -> ApiError:
    """503: this server goes; another one may answer."""
    return unavailable("The server is shutting down", RETRY_DRAINING, "shutting_down")
