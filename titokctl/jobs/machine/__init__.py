"""What is on this machine: runs, recipes, and what the hardware can do."""
