"""Sources of records, sealed datasets, and the order in which records are drawn."""
