"""From files to ready models: official names and ours, known models, hashes."""
