"""Drawing images with a generator and its tokenizer."""
