"""Darknet networks on PyTorch: .cfg files, layers, losses, learning rates and .weights files.

A source such as "darknet: blas.c, l2_cpu" is a file and function of the original Darknet in C
(github.com/pjreddie/darknet, folder src unless named).
"""
