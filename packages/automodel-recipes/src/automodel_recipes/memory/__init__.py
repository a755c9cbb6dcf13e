"""How much memory a training step takes: measured on real tensors, or traced on tensors without storage."""
