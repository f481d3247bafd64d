"""What every command stands on: command line, files, signals, the launcher, the environment."""
