"""Shared by every command: command line, files, signals, the launcher, the environment."""
