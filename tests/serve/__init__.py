"""The HTTP server and the terminal command over a scripted engine."""
