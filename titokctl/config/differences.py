"""Differences between two nested settings, as lines for people."""

from typing import Any


def flat_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields in which two nested settings differ, "a.b: old -> new", sorted by field."""
    a, b = flatten(old), flatten(new)
    names = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in names]


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of names like "model.width"."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
