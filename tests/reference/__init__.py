"""Naive numpy float64 references. They know nothing of the engine and are written to be read."""
