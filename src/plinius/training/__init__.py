"""The trainer of Darknet networks, and what other training loops can use too."""
