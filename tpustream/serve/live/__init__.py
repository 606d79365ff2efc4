"""Streams that a client steers while they run: one connection, several streams, messages both ways."""
