"""Training tokenizers and generators."""
