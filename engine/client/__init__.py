"""Everything that a service touches: the client, and how runs are read from the log."""
