"""Where answers are kept between requests: in memory, bounded in number and in bytes."""

from collections import OrderedDict

from tpustream.serve.errors import ApiError
from tpustream.serve.responses.record import ResponseRecord


class ResponseStore:
    """Responses by id. The one unused for longest goes first; a running one stays.

    Args:
      most: responses.
      most_bytes: of all, as JSON.
    """

    def __init__(self, *, most: int, most_bytes: int):
        self._most, self._most_bytes = most, most_bytes
        self._records: OrderedDict[str, ResponseRecord] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def bytes(self) -> int:
        """Of all responses, as JSON."""
        return sum(self._sizes.values())

    def put(self, record: ResponseRecord) -> None:
        """Keep a response, or measure again one that has grown; others may have to go."""
        self._records[record.id] = record
        self._records.move_to_end(record.id)
        self._sizes[record.id] = record.size()
        for old in [old for old in self._records.values() if not old.running]:
            if len(self._records) <= self._most and self.bytes <= self._most_bytes:
                break
            self.drop(old.id)

    def find(self, id: str, owner: str) -> ResponseRecord | None:
        """The response; None where there is none, or it is another client's."""
        record = self._records.get(id)
        if record is None or record.owner != owner:
            return None
        self._records.move_to_end(id)
        return record

    def get(self, id: str, owner: str) -> ResponseRecord:
        """As `find`. Raises ApiError 404."""
        record = self.find(id, owner)
        if record is None:
            raise ApiError(404, f"Response with id {id!r} not found", param="response_id")
        return record

    def drop(self, id: str) -> None:
        """Forget a response that is there."""
        del self._records[id], self._sizes[id]

    def __contains__(self, id: str) -> bool:
        return id in self._records
