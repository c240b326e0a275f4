"""Parsers that describe where tensors lie in a file; they never execute or write anything."""
