"""Errors that reach a user. Each message says what was wanted and what came."""


class ModelError(ValueError):
    """A model, a weight file or a tokenizer that cannot be used: missing, truncated, misshapen."""


class InvalidRequest(ValueError):
    """A request that is refused before any work.

    Attributes:
      param: the field at fault, or None.
      code: a word that programs match, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class EngineStopped(RuntimeError):
    """The engine takes no more requests: it was stopped or it failed."""


class QueueFull(RuntimeError):
    """Too much is waiting already; the same request may pass a little later.

    Attributes:
      retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


def context_exceeded(context: int, requested: int, param: str = "messages") -> InvalidRequest:
    """The error that clients recognise by its wording and code (see OpenAI's API reference)."""
    return InvalidRequest(
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{requested} tokens. Please reduce the length of the {param}.",
        param=param,
        code="context_length_exceeded",
    )
