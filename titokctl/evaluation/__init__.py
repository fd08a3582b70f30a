"""How good images are: features, distances between sets, reconstruction errors."""
