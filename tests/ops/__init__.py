"""Tests of semobridge_ext.ops, one file per op."""
