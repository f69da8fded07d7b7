"""Rows as 8-bit codes with certain bounds."""
