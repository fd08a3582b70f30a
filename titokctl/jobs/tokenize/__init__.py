"""The tokenize command: its request, one process's work, one unit's encoding, and the output."""
