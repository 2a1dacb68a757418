"""Benchmarks: each module prints one JSON object with ``--json``, a table without.

``--quick`` finishes within a minute and marks its rows so.
"""
