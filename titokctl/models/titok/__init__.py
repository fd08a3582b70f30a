"""The TiTok tokenizer: a ViT encoder to K latent tokens, a quantizer, a ViT decoder with a pixel or proxy head."""
