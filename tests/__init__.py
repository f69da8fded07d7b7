"""Tests of semobridge_ext; the folders mirror the package."""
