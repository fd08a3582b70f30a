"""MaskGIT generators over cached ids: a BERT-style ViT and a UViT."""
