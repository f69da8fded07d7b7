"""The operators, one folder each: op.py, its kernels' callers (cpu, cuda, triton) and its oracle."""
