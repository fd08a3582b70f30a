"""Commands about this machine: its runs, recipes and hardware."""
