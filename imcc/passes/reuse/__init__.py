"""Attention reuse: where attention is, which encoders go without, what takes its place."""
