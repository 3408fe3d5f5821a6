"""Darknet networks: the cfg language, its layers, schedules and weight files, on PyTorch."""
