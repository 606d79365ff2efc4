"""Chat templates: the environment that they are written for, and what a stranger's may not do."""

import enum

import pytest

from tpustream.core.errors import InvalidRequest, ModelError
from tpustream.text import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello <b>"}]


def render(source: str, messages=MESSAGES, **variables) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **variables)


def test_blocks_are_trimmed_and_special_tokens_are_known():
    """A template that is laid out over lines gives no stray newlines."""
    source = """{{ bos_token }}
    {% for m in messages %}
[{{ m['role'] }}]{{ m.content }}
    {% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}
"""
    assert render(source) == "<s>\n[user]Hi\n[assistant]Hello <b>\n[assistant]"
    assert render(source, add_generation_prompt=False) == "<s>\n[user]Hi\n[assistant]Hello <b>\n"


def test_what_templates_of_models_use():
    """Loop controls, generation blocks, namespaces, tojson without HTML escapes, variables, dates."""
    assert render("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "user"
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}b") == "aHib"
    assert render("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}") == "2"
    assert render("{{ messages[1] | tojson }}") == '{"role": "assistant", "content": "Hello <b>"}'
    assert render("{{ tools | tojson(indent=1) }}", tools=[{"é": 1}]) == '[\n {\n  "é": 1\n }\n]'
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert ChatTemplate("{{ messages[0].content }}", {}).render(MESSAGES, **{"messages": "x"}) == "Hi"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert render("{{ tools is none }}{{ documents is defined }}") == "TrueFalse"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ messages[0].absent.deeper }}", "refuses"),
        ("{{ 1 // 0 }}", "cannot render"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render"),
        ("{{ range(10000000) | list }}", "cannot render"),
    ],
)
def test_a_template_that_fails_is_the_requests_error(source, message):
    """A failing template refuses one request by name and leaves the server alone."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        render(source)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('true').read() }}",
        "{{ strftime_now.__func__.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (messages | map(attribute='__class__') | list)[0] }}",
        "{{ messages | attr('__class__') }}",
    ],
)
def test_the_sandbox_holds(source):
    """A template from a stranger reaches neither Python's objects nor our data."""
    with pytest.raises(InvalidRequest):
        render(source)
    assert MESSAGES[0] == {"role": "user", "content": "Hi"}


def test_templates_see_plain_data_only():
    """Enums arrive as their values; an object with methods does not arrive at all."""

    class Role(str, enum.Enum):  # noqa: UP042 - a StrEnum has no such trap
        USER = "user"

    assert render("{{ messages[0].role }}", [{"role": Role.USER, "content": ""}]) == "user"
    with pytest.raises(InvalidRequest, match="wanted JSON data, got object"):
        render("{{ messages[0].content }}", [{"role": "user", "content": object()}])


@pytest.mark.parametrize("messages", [[], ["hi"], [{"content": "hi"}], [{"role": 1}]])
def test_messages_have_roles(messages):
    """Wrong shapes are refused before the template sees them."""
    with pytest.raises(InvalidRequest, match="wanted") as caught:
        render("x", messages)
    assert caught.value.param == "messages"


def test_no_template_and_broken_template():
    """Without a template chat is refused; with a broken one the model is."""
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        ChatTemplate(None, {}).render(MESSAGES)
    assert caught.value.param == "messages"
    with pytest.raises(ModelError, match="chat template, line 2: wanted valid Jinja"):
        ChatTemplate("a\n{% for %}", {})
