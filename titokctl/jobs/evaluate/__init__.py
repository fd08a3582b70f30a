"""Judging images: distances, reconstructions, comparisons of results."""
