"""Writes, reads, compares, copies, limits and formats values. Pure."""
