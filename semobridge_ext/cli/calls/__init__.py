"""The steps of the command line as Python functions; each command and its function share one path."""
