"""Drawing ids with a generator: guidance, mask schedule, parallel decoding, noise."""
