"""Passes: one file each, named like the pass; hardware-neutral.

A pass is found by its file name (``fold-batch-norm`` in ``fold_batch_norm.py``) in every package
registered under the entry-point group ``imcc.passes``.
"""
