"""Images and ids on their way to a model; only `images` decides about pixels."""
