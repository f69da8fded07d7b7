"""Tests of semobridge_ext._ops/*/triton.py: numerics in Triton's interpreter, code for real
architectures."""
