"""Models, recipes and settings of a run, and their readers. Nothing here imports torch."""
