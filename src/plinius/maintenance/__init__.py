"""Care of sealed datasets and regions: checks, copies, listings, other keys. No torch."""
