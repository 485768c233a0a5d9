"""What every command shares: settings from the command line, --help, and errors without tracebacks."""
