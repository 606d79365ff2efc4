"""What a restarted server has to know of an answer to make it again and to see that it is the same."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from tpustream.serve.errors import ApiError


class Mismatch(ApiError):
    """What comes now is not what was sent before. 410: asking again does not help."""

    def __init__(self, reason: str):
        super().__init__(410, f"The answer cannot be continued: {reason}", code="resume_mismatch")


@dataclasses.dataclass(kw_only=True)
class Record:
    """One kept answer, without a word of it.

    Attributes:
      id: of the answer, as its objects say.
      owner: name of the client that may see it.
      route: path that it was asked at.
      key: of idempotency; None where the client gave none.
      digest: of the request's body as it came.
      streamed: as events, or at once.
      created: seconds since 1970.
      body: the request with its seed drawn, to ask again with; b"" where no database keeps it.
      model: fingerprint of the model, its configuration and this software.
      asked: fingerprint of the prompts' tokens and the sampling; "" before they are known.
      counts: events, for each choice; () before it is known how many there are.
      checksums: SHA-256 of what the choices said in their events so far.
      tokens: generated so far.
      touched: when it last got further, in seconds since 1970.
    """

    id: str
    owner: str
    route: str
    key: str | None
    digest: str
    streamed: bool
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    body: bytes = b""
    model: str = ""
    asked: str = ""
    counts: Sequence[int] = ()
    checksums: Sequence[str] = ()
    tokens: int = 0
    touched: float = dataclasses.field(default_factory=time.time)


class Checksums:
    """Running checksums of the choices of one answer, over what each event says of its choice.

    The usage, padding and times are left out: they may differ between two runs of the same answer.
    """

    def __init__(self, choices: int):
        self._sums = [hashlib.sha256() for _ in range(choices)]

    def add(self, index: int, choice: Any) -> None:
        """One more event of choice `index`."""
        self._sums[index].update(to_json(choice))

    def of(self, index: int) -> str:
        """The checksum of one choice."""
        return self._sums[index].hexdigest()

    def all(self) -> list[str]:
        """One for each choice."""
        return [one.hexdigest() for one in self._sums]


def digest_of(route: str, body: BaseModel) -> str:
    """A hash by which a request asked again is known: equal for equal fields in whatever order."""
    fields = json.dumps([route, body.model_dump(mode="json", exclude_unset=True)], sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()
