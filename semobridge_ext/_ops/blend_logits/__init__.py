"""SeMoBridge's blended few-shot logits."""
