"""SeMoBridge-T's training step."""
