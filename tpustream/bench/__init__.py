"""Measurements: what the machine can do, and what the steps do with it."""
