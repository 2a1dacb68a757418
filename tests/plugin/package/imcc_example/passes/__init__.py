"""Passes of this package, one file each."""
