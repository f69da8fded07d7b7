"""How many rows each trial of a blend search gets right."""
