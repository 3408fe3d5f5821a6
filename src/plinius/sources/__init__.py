"""The owner's side of data: records read from the file formats that people have."""
