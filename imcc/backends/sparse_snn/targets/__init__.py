"""Targets of the backend ``sparse_snn``, one TOML file each."""
