"""Rendered scenes: one solid on a floor before a wall. Pictures with known factors, in any number and size."""
