"""The decoder as a flax nnx module, and how its parameters lie on a mesh."""
