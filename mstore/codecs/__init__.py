"""Reversible encodings of one chunk."""
