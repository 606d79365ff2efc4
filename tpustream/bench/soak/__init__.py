"""A soak: thousands of mixed requests, and what must be true after them. `scripts/soak.py` runs it."""
