"""One file per thing on disk; each opens with its specification. docs/formats.md says the same for other readers."""
