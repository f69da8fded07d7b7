"""Tests of semobridge_ext.clip."""
