"""The classes that the code of workflows uses: workflows, steps, context."""
