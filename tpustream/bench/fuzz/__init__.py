"""A server under bytes and bodies that nobody should send; what must hold all the same."""
