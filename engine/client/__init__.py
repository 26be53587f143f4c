"""The client side: the client that services use, and readers of runs in the log."""
