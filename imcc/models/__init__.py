"""Reference models in plain torch, for examples, tests and benchmarks."""
