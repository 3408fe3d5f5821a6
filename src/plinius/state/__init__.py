"""The run state: live objects as JSON and named tensors, and back."""
