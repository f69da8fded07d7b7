"""Exact search: the k best scores of every query."""
