"""Host types that flow through the engine. No jax here."""
