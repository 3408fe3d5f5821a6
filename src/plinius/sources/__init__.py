"""The owner's side: records read from the files that people have."""
