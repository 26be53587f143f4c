"""Replay: the code of a run over its journal. Pure, but for that code."""
