"""The trainer's side of data: records, the sealed dataset, its extent, the order of records."""
