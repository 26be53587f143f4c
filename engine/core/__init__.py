"""The meaning of records, the same for every reader. Pure."""
