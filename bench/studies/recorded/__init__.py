"""The cases of recorded_results.py, one file per room of the package. Public API only, fixed seeds."""
