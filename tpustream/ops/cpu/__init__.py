"""C++ kernels for one CPU device: how weights are laid out, how the kernels are built and called."""
