"""Sharing products on the Hugging Face Hub."""
