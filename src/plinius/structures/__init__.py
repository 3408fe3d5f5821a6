"""Persistent array, stack and queue, in the heap of a region."""
