"""What the records mean: the same for every reader. Pure."""
