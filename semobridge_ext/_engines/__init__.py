"""Stateful steps: the descent through a frozen tower and SeMoBridge-T's training."""
