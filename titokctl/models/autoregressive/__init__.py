"""Autoregressive generators over cached ids: a causal transformer whose order of the ids is free (RAR)."""
