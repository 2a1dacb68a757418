"""Renders the driver's data: tables for the terminal, DOT and SVG of a program."""
