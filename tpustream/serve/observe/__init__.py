"""What an operator sees: log lines, metrics, traces. Never a prompt, an answer or a key."""
