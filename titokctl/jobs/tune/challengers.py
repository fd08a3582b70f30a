"""The settings that take part in a race beside the preset: changes of one field of it, and of several at random."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from titokctl.config.sampling import (
    REMASKING,
    UNMASKING_RULES,
    AutoregressiveSampling,
    FlowSampling,
    GuidanceConfig,
    GuidanceSchedule,
    SamplingConfig,
)
from titokctl.errors import UsageError

_MOST_CHANGES = 4
_INTERVALS = ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.0, 0.75), (0.25, 0.75))
_CAPS = (0.1, 0.3)  # of remasking
_REPEATS = 200  # so many draws in a row that are known already end the search for new ones
Change = dict[str, Any]


def challengers(preset: GuidanceConfig, num_tokens: int, count: int, seed: int) -> list[GuidanceConfig]:
    """Return `count` settings that differ from the preset and from each other; the same for equal arguments.

    Half of them differ from the preset in one field, the others in two to four.

    Args:
        preset: of any kind of generator; the fields that its kind has are changed.
        num_tokens: K; more steps than that are of no use.

    Raises UsageError when there are not so many.
    """
    draws = np.random.default_rng(seed)
    fields = _changes(preset, num_tokens)
    single = [change for changes in fields.values() for change in changes]
    order = draws.permutation(len(single))
    half = (count + 1) // 2
    chosen = [single[i] for i in order[:half]]
    several = _distinct(fields, count - len(chosen), draws) if len(fields) > 1 else []
    chosen += [*several, *(single[i] for i in order[half:])][: count - len(chosen)]
    if len(chosen) < count:
        raise UsageError(
            f"there are only {len(chosen)} settings to try for this generator, not {count}",
            f"give a smaller number: --candidates {len(chosen) + 1}",
        )
    return [preset.model_copy(update=change) for change in chosen]


def difference_in_words(settings: GuidanceConfig, preset: GuidanceConfig) -> str:
    """Return the fields in which settings differ from the preset, such as "num_steps 8, guidance_scale 2"."""
    ours, theirs = settings.model_dump(), preset.model_dump()
    changed = [f"{name} {_short(value)}" for name, value in ours.items() if value != theirs[name]]
    return ", ".join(changed) or "the preset"


def _changes(preset: GuidanceConfig, num_tokens: int) -> dict[str, list[Change]]:
    """Return the changes of each field; with remasking comes its cap."""
    found = {
        name: [{name: value} for value in values]
        for name, values in _alternatives(preset, num_tokens).items()
        if values
    }
    if isinstance(preset, SamplingConfig):
        remasking = [{"unmasking": REMASKING, "remasking_cap": cap} for cap in _CAPS]
        others = [change for change in found["unmasking"] if change["unmasking"] != REMASKING]
        own = {"unmasking": preset.unmasking, "remasking_cap": preset.remasking_cap}
        found["unmasking"] = [change for change in [*others, *remasking] if change != own]
    return found


def _alternatives(preset: GuidanceConfig, num_tokens: int) -> dict[str, list[Any]]:
    """Return other values of each field that is worth trying."""
    found: dict[str, list[Any]] = {
        "guidance_scale": _scaled(preset.guidance_scale, (0.0, 0.5, 0.75, 1.5, 2.0), (0.5, 1.0, 2.0, 4.0)),
        "guidance_schedule": _others(preset.guidance_schedule, get_args(GuidanceSchedule)),
        "guidance_interval": _others(preset.guidance_interval, _INTERVALS),
    }
    if isinstance(preset, SamplingConfig):
        steps = (round(preset.num_steps * factor) for factor in (0.5, 0.75, 1.5, 2))
        temperatures = _scaled(preset.choice_temperature, (0.25, 0.5, 0.75, 1.5, 2.0), (1.0, 2.0, 4.0, 8.0))
        found |= {
            "num_steps": _others(preset.num_steps, (n for n in steps if 1 <= n <= num_tokens)),
            "choice_temperature": temperatures,
            "softmax_annealing": [not preset.softmax_annealing],
            "unmasking": _others(preset.unmasking, UNMASKING_RULES),
        }
    if isinstance(preset, AutoregressiveSampling):
        found |= {
            "temperature": _scaled(preset.temperature, (0.8, 0.9, 1.1), (0.8, 1.0)),
            "top_k": _others(preset.top_k, (None, 16, 64, 256)),
            "top_p": _others(preset.top_p, (0.8, 0.9, 0.95, 1.0)),
        }
    if isinstance(preset, FlowSampling):
        counts = (round(preset.num_steps * factor) for factor in (0.5, 0.75, 1.5, 2))
        found |= {
            "num_steps": _others(preset.num_steps, (n for n in counts if n)),
            "solver": ["euler" if preset.solver == "heun" else "heun"],
        }
    return found


def _scaled(value: float, factors: Sequence[float], instead_of_0: Sequence[float]) -> list[float]:
    """Return multiples of a value, of three digits; `instead_of_0` for 0."""
    return [float(f"{value * factor:.3g}") for factor in factors] if value else list(instead_of_0)


def _others(value: Any, values: Iterable[Any]) -> list[Any]:
    return [other for other in dict.fromkeys(values) if other != value]


def _distinct(fields: dict[str, list[Change]], count: int, draws: np.random.Generator) -> list[Change]:
    """Draw `count` different changes of several fields; fewer if fewer exist."""
    found: dict[tuple[Any, ...], Change] = {}
    repeats = 0
    while len(found) < count and repeats < _REPEATS:
        change = _several(fields, draws)
        repeats = repeats + 1 if tuple(change.items()) in found else 0
        found[tuple(change.items())] = change
    return list(found.values())


def _several(fields: dict[str, list[Change]], draws: np.random.Generator) -> Change:
    """Draw a change of several fields."""
    names, most = list(fields), min(_MOST_CHANGES, len(fields))
    chosen = sorted(draws.choice(len(names), draws.integers(2, most + 1), replace=False))
    drawn: Change = {}
    for name in (names[i] for i in chosen):
        drawn |= fields[name][draws.integers(len(fields[name]))]
    return drawn


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
