"""Tests of semobridge_ext.ops.triton: numerics in Triton's interpreter, code for real architectures."""
