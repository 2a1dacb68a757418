"""Passes of the backend ``crossbar``, one file each."""
