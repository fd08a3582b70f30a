"""Finding sampling settings for a trained generator."""
