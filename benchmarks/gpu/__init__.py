"""Sections of the acceptance run on a GPU (`benchmarks.gpu_check`): is it right, does all of it run, how fast is it."""
