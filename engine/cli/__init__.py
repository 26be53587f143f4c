"""The command line. `app` declares the commands; each command imports heavy modules only when it runs."""
