"""What bench/gpu/model.py counts with: machines, launches, and the calls of each side."""
