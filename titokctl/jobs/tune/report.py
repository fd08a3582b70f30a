"""The result of a race for people: sentences, tables, and the front of cost and quality."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from titokctl.config.sampling import GuidanceConfig
from titokctl.errors import UserError
from titokctl.evaluation.racing import PRESET, SIGNIFICANT
from titokctl.formats.report_page import Curve, ReportPage
from titokctl.formats.tuning import RESULT, SETTINGS, read_tuning
from titokctl.jobs.tune.challengers import difference_in_words

TRIED_COLUMNS = ("setting", "ms an image", "rounds", "images", "value", "differs from the preset in")
FINALIST_COLUMNS = ("finalist", "images", "value", "preset", "difference", "standard error", "p, corrected", "reads")


@dataclass(frozen=True)
class Tried:
    """Settings that took part in the race, and their last measurement in its rounds; setting 0 is the preset."""

    setting: int
    sampling: dict[str, Any]
    rounds: int
    images: int
    value: float
    seconds_per_image: float


@dataclass(frozen=True)
class Finalist:
    """The comparison of a finalist with the preset on unseen images; `p_corrected` is corrected for all finalists."""

    setting: int
    images: int
    value: float
    preset_value: float
    difference: float
    standard_error: float
    p: float
    p_corrected: float
    is_better: bool


@dataclass(frozen=True)
class TuneResult:
    """The proposed settings.

    Args:
        settings: the file with the proposed settings.
        is_better: True if they are better than the preset; otherwise they are the preset.
        proposed: their number in `tried`.
        metric, features: the metric, lower is better, and the feature network.
        tried: all settings by number; number 0 is the preset.
        finalists: the comparisons with the preset that decided.
        images, seconds: what was drawn for all settings, and the time that drawing and judging took.
    """

    settings: str
    is_better: bool
    proposed: int
    metric: str
    features: str
    tried: list[Tried]
    finalists: list[Finalist]
    images: int
    seconds: float


def read_result(folder: Path) -> TuneResult:
    """Return the finished result in `folder`. Raises UserError for a damaged one."""
    found = read_tuning(folder)
    try:
        result = TypeAdapter(TuneResult).validate_python(found | {"settings": str(folder / SETTINGS)})
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, one["loc"])) for one in error.errors()[:3])
        raise UserError(f"{folder / RESULT} is damaged: {wrong}", "make it again with --overwrite") from error
    return result


def in_words(result: TuneResult) -> list[str]:
    """Return sentences about the result: the proposal, and the test that decided."""
    name = f"{result.metric} ({result.features})"
    best = next(
        (f for f in result.finalists if f.setting == result.proposed), min(result.finalists, key=lambda f: f.value)
    )
    share = f", {best.difference / best.preset_value:+.0%}" if best.preset_value > 0 else ""
    numbers = (
        f"{name} {best.value:.4g} against the preset's {best.preset_value:.4g}{share} (standard error of the "
        f"difference {best.standard_error:.2g}, p = {best.p_corrected:.2g}) on {best.images:,} unseen images of each."
    )
    if result.is_better:
        proposal = f"Setting {best.setting} is better than the preset: {numbers}"
    else:
        proposal = (
            f"No setting is better than the preset at p < {SIGNIFICANT:g}, so the preset is proposed. The best "
            f"finalist is setting {best.setting}: {numbers}"
        )
    tested = len(result.finalists)
    return [
        proposal,
        f"The p-value is corrected for {tested} {'finalist' if tested == 1 else 'finalists'} (Holm). The choice of the "
        f"finalists among {len(result.tried)} settings used other images, so it needs no correction.",
    ]


def tried_rows(result: TuneResult, settings: Sequence[GuidanceConfig]) -> list[tuple[str, ...]]:
    """Return a row for each setting, those that stayed longest first."""
    order = sorted(result.tried, key=lambda each: (-each.rounds, each.value))
    return [
        (
            "preset" if each.setting == PRESET else str(each.setting),
            f"{1e3 * each.seconds_per_image:.1f}",
            str(each.rounds),
            f"{each.images:,}",
            f"{each.value:.4g}",
            difference_in_words(settings[each.setting], settings[PRESET]),
        )
        for each in order
    ]


def finalist_rows(result: TuneResult) -> list[tuple[str, ...]]:
    """Return a row for each comparison of a finalist with the preset."""
    return [
        (
            str(each.setting),
            f"{each.images:,}",
            f"{each.value:.4g}",
            f"{each.preset_value:.4g}",
            f"{each.difference:+.4g}",
            f"{each.standard_error:.2g}",
            f"{each.p_corrected:.2g}",
            "better than the preset" if each.is_better else "no improvement shown",
        )
        for each in result.finalists
    ]


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Return the settings that no other one beats in both time and value, from the fastest to the slowest."""
    found: list[Tried] = []
    for each in sorted(tried, key=lambda one: (one.seconds_per_image, one.value)):
        if not found or each.value < found[-1].value:
            found.append(each)
    return found


def write_report(path: Path, result: TuneResult, settings: Sequence[GuidanceConfig]) -> None:
    """Write the report page."""
    page = ReportPage("titokctl tune")
    for sentence in in_words(result):
        page.paragraph(sentence)
    page.heading("The finalists and the preset on unseen images")
    page.table(FINALIST_COLUMNS, finalist_rows(result))
    page.heading("Time and quality")
    page.plot(
        [
            Curve("settings that no other one beats in both", _points(front(result.tried))),
            Curve("all settings", _points(result.tried), is_line=False),
        ],
        "ms an image",
        f"{result.metric} ({result.features})",
    )
    page.paragraph(
        "Each value is from the last round that the setting took part in. Settings that left early were measured "
        "on few images, and the lowest of many measured values is too low: only the comparison above is a test."
    )
    page.heading("All settings")
    page.table(TRIED_COLUMNS, tried_rows(result, settings))
    page.paragraph(f"{result.images:,} images were drawn and judged in {result.seconds / 60:.1f} minutes.")
    page.write(path)


def _points(tried: Sequence[Tried]) -> list[tuple[float, float]]:
    return sorted((1e3 * each.seconds_per_image, each.value) for each in tried)
