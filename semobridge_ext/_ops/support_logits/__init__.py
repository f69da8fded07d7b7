"""Tip-Adapter's cache term over a support set, streamed."""
