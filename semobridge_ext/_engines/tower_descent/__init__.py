"""Gradient steps on a few rows of a frozen transformer's input."""
