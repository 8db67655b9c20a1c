"""Image -> tokens -> logits."""
