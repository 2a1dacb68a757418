"""Targets of the backend ``reference``, one TOML file each."""
