"""Evaluation of images: features, distances between sets, reconstruction errors."""
