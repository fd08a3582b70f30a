"""MaskGIT-VQGAN, the proxy tokenizer of the two-stage recipe, at any size."""
