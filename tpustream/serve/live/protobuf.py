"""Between the messages of stream.proto and those of messages.py: the same names, so no list of fields."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from tpustream.serve.live import stream_pb2
from tpustream.serve.live.messages import ServerMessage


def fields_of(message: stream_pb2.ClientMessage) -> dict[str, Any]:
    """What `read_message` takes; without a type where the message says nothing."""
    kind = message.WhichOneof("message")
    return {} if kind is None else {"type": kind, **set_fields(getattr(message, kind))}


def set_fields(message: Message) -> dict[str, Any]:
    """The fields that are there, messages among them as dicts."""
    return {field.name: _plain(value) for field, value in message.ListFields()}


def message_of(message: ServerMessage) -> stream_pb2.ServerMessage:
    """The same message for the wire."""
    fields = message.model_dump(exclude={"type"}, exclude_none=True)
    return stream_pb2.ServerMessage(**{message.type: fields})


def _plain(value: Any) -> Any:
    match value:
        case str() | bool() | int() | float():
            return value
        case Message():
            return set_fields(value)
        case Mapping():
            return dict(value)
    return [_plain(entry) for entry in value]
