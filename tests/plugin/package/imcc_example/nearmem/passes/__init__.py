"""Passes of the backend, one file each."""
