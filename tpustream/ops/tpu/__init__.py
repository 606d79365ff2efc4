"""Pallas kernels for TPU: attention of a decode step and of a prompt's chunk, on every chip of a mesh."""
