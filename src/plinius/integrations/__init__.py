"""The mirror for the training loops of other libraries. Each needs the extra of that name."""
