"""In front of the real one, this hides it (conftest.py)."""

raise ImportError("the tests run without uvloop (--loop uvloop runs them with it)")
