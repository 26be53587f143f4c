"""Everything that the code of workflows touches."""
