"""`python -m tpustream.compile`: a bundle of compiled steps, for starts that compile nothing."""
