"""Darknet's layers that compare with the truth, by family."""
