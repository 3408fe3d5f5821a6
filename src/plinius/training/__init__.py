"""The trainer of Darknet networks, and what any training loop shares."""
