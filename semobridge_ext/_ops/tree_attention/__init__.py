"""Attention of rows over listed keys: the nodes of a prefix tree over their ancestors."""
