"""Targets of the backend ``crossbar``, one TOML file each."""
