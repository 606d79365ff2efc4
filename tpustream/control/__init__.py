"""What happens to a stream on the host: stops, and the way from token events to safe text."""

from tpustream.control.engine_stream import TokenEngine, stream_text
from tpustream.control.stops import StopMatcher
from tpustream.control.text_stream import TextStream

__all__ = ["StopMatcher", "TextStream", "TokenEngine", "stream_text"]
