"""Ranks of the relevant items of a query, counted without a ranking."""
