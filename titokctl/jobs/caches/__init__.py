"""Work on token caches and weights: merge, convert, compare, check, show."""
