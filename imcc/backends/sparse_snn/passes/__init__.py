"""Passes of the backend ``sparse_snn``, one file each."""
