"""What every operator and engine runs on: backends, choices, views, graphs, calibration."""
