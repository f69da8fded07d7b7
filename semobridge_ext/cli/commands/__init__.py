"""One file per sub-command, each with `add_parser` and `run`."""
