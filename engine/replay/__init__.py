"""Replay: runs the code of a run over its journal. Pure, except for that code."""
