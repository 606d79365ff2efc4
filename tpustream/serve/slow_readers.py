"""Readers that take less than the engine gives: how much may wait for one, and what happens beyond it.

Each answer has a Backlog of its own, so a slow reader is felt by nobody else: the engine never waits. At
the bound its streams are paused until half of it has been read, or they end with an error.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable

from tpustream.serve.errors import ApiError

SLOW_READERS = ("pause", "end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderPolicy:
    """What a slow reader may expect.

    Attributes:
      max_unread: tokens a choice that may wait to be read.
      beyond: "pause" the streams at the bound, or "end" them with an error.
      patience: seconds without a token read after which paused streams end all the same.
    """

    max_unread: int
    beyond: str
    patience: float


class Backlog:
    """Keeps what is unread within the bound. All but `grew` is called on the event loop.

    Args:
      most: tokens of all choices together.
      unread: how many wait now.
      pause, resume: the streams; called in turn.
      give_up: ends them with this error.
    """

    def __init__(
        self,
        policy: ReaderPolicy,
        *,
        most: int,
        unread: Callable[[], int],
        pause: Callable[[], None],
        resume: Callable[[], None],
        give_up: Callable[[ApiError], None],
    ):
        self._policy = policy
        self._most = most
        self._unread = unread
        self._pause, self._resume, self._give_up = pause, resume, give_up
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._full = False  # from the token over the bound until half has been read
        self._timer: asyncio.TimerHandle | None = None  # set while paused
        self._read_last = 0.0

    def grew(self) -> None:
        """A token came. From any thread."""
        if not self._full and self._unread() > self._most:
            self._full = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to read
                self._loop.call_soon_threadsafe(self._overflow)

    def shrank(self) -> None:
        """The reader took some."""
        self._read_last = time.monotonic()
        if self._timer is not None and self._half_read:
            self._stop_waiting()
            self._resume()
            self._full = False

    def close(self) -> None:
        """Whatever is read or not, do nothing any more."""
        self._closed = True
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _half_read(self) -> bool:
        return self._unread() <= self._most // 2

    def _overflow(self) -> None:
        if self._closed:
            return
        if self._policy.beyond == "end":
            self._give_up(read_too_slowly(self._most))
        elif self._half_read:  # in the meantime
            self._full = False
        else:
            self._read_last = time.monotonic()
            self._pause()
            self._wait(self._policy.patience)

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        left = self._read_last + self._policy.patience - time.monotonic()
        if left > 0:
            self._wait(left)
        else:
            self._give_up(read_too_slowly(self._most, self._policy.patience))


def read_too_slowly(tokens: int, seconds: float | None = None) -> ApiError:
    """408: the client left more unread than the server keeps, and took none of it for `seconds`."""
    message = f"The stream was read too slowly: more than {tokens} tokens were waiting to be read"
    if seconds is not None:
        message += f", and none was for {seconds:g} seconds"
    return ApiError(408, message, code="slow_reader")
