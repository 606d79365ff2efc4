"""Load for any OpenAI-compatible server, in stages: dataset, bodies, arrivals, client, metrics, report.

Knows nothing of the engine and imports no jax: the server under load is another process.
"""
