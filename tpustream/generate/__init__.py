"""The terminal command: one answer, or a conversation."""
