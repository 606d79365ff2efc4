"""What a server said on a raw connection, and what of it is the server's own fault."""

import re

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n(.*?)\r\n\r\n", re.DOTALL)
ERROR = re.compile(rb'"type":"server_error"[^}]*"code":(?:"(\w+)"|null)')
# Ends that the server chose within its bounds, and said so.
CHOSEN = (b"request_timeout", b"deadline_exceeded")
SHOWN = 300  # bytes of an answer in a report


def faults(answer: bytes) -> list[str]:
    """Statuses of 500 and above, refusals without Retry-After, and errors of the server inside streams."""
    found = []
    for status, headers in STATUS.findall(answer):
        code = int(status)
        if code in (429, 503) and b"retry-after:" not in headers.lower():
            found.append(f"{code} without Retry-After")
        elif code >= 500 and code != 503 and not (code == 504 and CHOSEN[0] in answer):
            found.append(f"status {code}: {shown(answer)}")
    for code in ERROR.findall(answer):
        if code not in CHOSEN and not found and b" 503 " not in answer:
            found.append(f"error {code.decode() or 'without code'}: {shown(answer)}")
    return found


def statuses(answer: bytes) -> list[int]:
    """The status of each response, in order."""
    return [int(status) for status, _ in STATUS.findall(answer)]


def shown(data: bytes) -> str:
    """Bytes for a report, shortened."""
    return ascii(data[-SHOWN:])
