"""Targets of the backend, one TOML file each."""
