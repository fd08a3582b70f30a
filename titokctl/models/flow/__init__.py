"""A flow-matching generator of the latents of Gaussian tokenizers."""
