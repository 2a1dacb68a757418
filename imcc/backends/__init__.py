"""Backends: what a hardware target is, and the families of hardware that imcc compiles to."""
