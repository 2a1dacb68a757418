"""Clipping of keys and values for attention whose matrices are written at run time."""
