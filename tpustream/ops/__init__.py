"""Array functions that the engine stands on: ring index rules, rotation, attention."""
