"""Tests of semobridge_ext.runtime.triton_operands: numerics in Triton's interpreter, code for real
architectures."""
