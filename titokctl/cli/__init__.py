"""The command line: words to typed arguments, results to text. Typer lives here and nowhere else."""
