"""ChatTemplate: messages to the one text that a model was trained on, through the model's own Jinja.

A template comes with the weights from a stranger, so it runs in Jinja's immutable sandbox and sees
plain JSON data only. The environment is the one that templates are written for
(transformers, utils/chat_template_utils.py).
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from tpustream.core.errors import InvalidRequest, ModelError


class ChatTemplate:
    """A compiled chat template.

    Args:
      source: Jinja source; None for a model that has none, whose `render` refuses every request.
      special_tokens: texts that the template may name, such as bos_token.

    Raises:
      ModelError: the source is not valid Jinja.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]):
        self._special_tokens = dict(special_tokens)
        try:
            self._template = None if source is None else _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"chat template, line {error.lineno}: wanted valid Jinja, got: {error}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text, to be encoded with add_bos=False: a template writes its own BOS.

        Args:
          messages: at least one, each with a role; plain JSON data.
          add_generation_prompt: end with the beginning of the assistant's answer.
          tools: function descriptions, for templates that use them.
          variables: further names that the template sees, such as enable_thinking; they replace
            special tokens of the same name, never the messages.

        Raises:
          InvalidRequest: param "messages"; no template, or the template refuses the messages.
        """
        if self._template is None:
            raise _refused("this model has no chat template, so it takes text completions only")
        if not messages:
            raise _refused("wanted at least one message, got none")
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise _refused(f"messages[{index}]: wanted an object with a role, got {message!r}")
        try:
            seen = {**self._special_tokens, **_plain(variables), "messages": _plain(messages)}
            seen |= {"tools": _plain(tools), "add_generation_prompt": add_generation_prompt}
            return self._template.render(seen)
        except jinja2.TemplateError as error:
            raise _refused(f"the chat template refuses these messages: {error}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            raise _refused(f"the chat template cannot render these messages: {error}") from error


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages")


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses an unsafe attribute at once; Jinja's own sandbox renders it as nothing until it is used."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise jinja2.sandbox.SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is unsafe")


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the answer for training; here it is just its content."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own scope, as the tag has where it does mark something.
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, but without names that reach into Python's own objects."""

    def __init__(self, /, *args: Any, **attributes: Any):
        for name in dict(*args, **attributes):
            _check_name(name)
        super().__init__(*args, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    # Not a method: a namespace looks its own attributes up among those of the template.
    if name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"namespace: wanted a name without a leading _, got {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which would put &lt; into prompts."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    """Local time, as transformers gives it to templates that tell the model today's date."""
    return datetime.datetime.now().strftime(pattern)


def _plain(value: Any) -> Any:
    """A copy of plain JSON types only: methods of richer objects are not for templates to call."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's own __str__ may give its name
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    raise TypeError(f"wanted JSON data, got {type(value).__name__}")
