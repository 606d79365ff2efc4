"""The C++ kernel for int8 products on CPU: how weights are laid out, how it is built, how it is called."""
