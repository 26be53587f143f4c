"""The command line. `app` holds the commands; everything heavy is imported by the command that needs it."""
