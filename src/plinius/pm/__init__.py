"""Persistent memory: a mapped region, twin-copy transactions, a heap."""
