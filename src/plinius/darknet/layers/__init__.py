"""Darknet's layers as PyTorch modules, by family.

A layer is built from its cfg section and the shapes of the outputs before it, for one record:
(channels, height, width) or (values,). It maps (records, *in_shape) to (records, *out_shape); a
shape (n, 1, 1) can also be passed as (records, n).
"""
