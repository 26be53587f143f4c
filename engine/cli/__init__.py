"""The command line. `app` holds the commands; each command imports heavy modules itself."""
