"""Shared by all commands: settings from the command line, --help, errors without tracebacks."""
