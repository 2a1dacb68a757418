"""A package outside of imcc that adds an op, a pass, a noise model, a target and a backend."""
