"""SQLite as the log.

driver `SQLiteDriver`: the log session threads, group commit, commits of other processes file tables and queries members the
living workers and their shares
"""

from .driver import SQLiteDriver

__all__ = ["SQLiteDriver"]
