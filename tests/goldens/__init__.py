"""Recorded outputs of other implementations, and the scripts that recorded them."""
