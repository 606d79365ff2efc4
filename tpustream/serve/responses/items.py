"""Input items: to the messages of a chat template, and to the form in which they are listed."""

import secrets
from collections.abc import Sequence
from typing import Any

from tpustream.core.errors import InvalidRequest
from tpustream.serve.chat import ROLES
from tpustream.serve.responses.schema import InputItem

PARTS = ("input_text", "output_text")


def as_items(given: str | Sequence[InputItem] | None) -> list[InputItem]:
    """The items of an input, whatever its form."""
    if isinstance(given, str):
        return [InputItem(role="user", content=given)]
    return list(given or ())


def item_messages(items: Sequence[InputItem]) -> list[dict[str, str]]:
    """Messages for the template. Raises InvalidRequest for items other than messages of text."""
    messages = []
    for position, item in enumerate(items):
        where = f"input[{position}]"
        if item.type not in (None, "message"):
            raise _unsupported(f"{where}.type", "'message'", item.type)
        if item.role not in ROLES:
            raise InvalidRequest(
                f"{where}.role: wanted one of {', '.join(ROLES)}, got {item.role!r}", param=f"{where}.role"
            )
        role = "system" if item.role == "developer" else item.role
        messages.append({"role": role, "content": _text(item, f"{where}.content")})
    return messages


def listed_items(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Items as `GET /v1/responses/{id}/input_items` gives them: with ids, content in parts."""
    listed = []
    for item in items:
        answer = item.role == "assistant"
        part: dict[str, Any] = (
            {"type": "output_text", "annotations": []} if answer else {"type": "input_text"}
        )
        texts = [item.content] if isinstance(item.content, str) else [p.text for p in item.content or ()]
        listed.append(
            {
                "id": item.id or "msg_" + secrets.token_hex(12),
                "type": "message",
                "role": item.role,
                "status": "completed",
                "content": [{**part, "text": text} for text in texts],
            }
        )
    return listed


def _text(item: InputItem, where: str) -> str:
    if isinstance(item.content, str):
        return item.content
    if item.content is None:
        raise InvalidRequest(f"{where}: wanted a text or a list of parts, got none", param=where)
    for position, part in enumerate(item.content):
        if part.type not in PARTS:
            raise _unsupported(f"{where}[{position}].type", " and ".join(map(repr, PARTS)), part.type)
        if part.text is None:
            path = f"{where}[{position}].text"
            raise InvalidRequest(f"{path}: this field is required", param=path)
    return "\n".join(part.text for part in item.content)


def _unsupported(path: str, wanted: str, got: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path}: this server supports {wanted}, got {got!r}", param=path, code="unsupported_content"
    )
