"""Turning images into a token cache."""
