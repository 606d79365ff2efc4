"""Weights in eight bits, and their products with rows of floats: plain XLA everywhere, a C++ kernel on CPU.

`quantize` makes an Int8Weight, which `xla.matmul` multiplies on any platform. On a single CPU device
with a C++ compiler, `ops.cpu.packed.pack` lays it out for the kernel, which gives the same numbers faster.
"""
