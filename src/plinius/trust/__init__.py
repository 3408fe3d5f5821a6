"""Keys only for an attested trainer: evidence, policy, broker, anchor. See docs/trust.md."""
