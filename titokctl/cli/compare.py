"""`titokctl compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import console, features, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform

if TYPE_CHECKING:
    from titokctl.jobs.evaluate.compare import Comparison, PairTested

_SURE = 0.05


@app.command(epilog="Example: titokctl compare samples-a/ samples-b/ --ref VIRTUAL_imagenet256_labeled.npz")
def compare(
    sets: Annotated[
        list[str], typer.Argument(metavar="SET", help="Sets of images as fid takes them, or its kept results.")
    ],
    reference: Annotated[
        Path | None, option("--ref", "For sets without a kept result, as fid takes it.", "REF")
    ] = None,
    network: features.Features = "inception",
    resize: features.Resize = "tf1",
    inception_weights: features.InceptionWeights = None,
    tokenizer: features.Tokenizer = None,
    save_features: features.SaveFeatures = False,
    skip_bad: features.SkipBad = False,
    fast: features.Fast = False,
    tf32: features.Tf32 = False,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Print results side by side, and test whether their FIDs differ by more than chance.

    The test is paired: image i of one set is compared with image i of the other.
    """
    from titokctl.jobs.evaluate.compare import Compare

    extractor = features.network(network, inception_weights, fast, resize, tf32)
    job = Compare(sets, reference, extractor, tokenizer, save_features, skip_bad)
    found = perform(job, Surroundings(quiet, as_json, runs_dir=runs_dir, device=device))
    if as_json:
        console.emit_json(found)
    else:
        _show(found)


def _show(found: "Comparison") -> None:
    names = list(dict.fromkeys(name for judged in found.results for name in judged.metrics))
    labels = _labels([judged.name for judged in found.results])
    rows = [["images", *(f"{judged.samples['count']:,}" for judged in found.results)]]
    for name in names:
        values = (judged.metrics.get(name) for judged in found.results)
        rows.append([name, *("-" if value is None else f"{value:.5g}" for value in values)])
    for field, keys in (("reference", ("path", "sha256")), ("features", ("name", "precision"))):
        records = [judged.reference if field == "reference" else judged.extractor for judged in found.results]
        rows.append([field, *(" ".join(Path(str(r.get(k, ""))).name[:28] for k in keys).strip() for r in records)])
    console.table("results", ["", *labels.values()], rows)
    if found.tests:
        tested = [_row(test, labels) for test in found.tests]
        columns = ["pair", "difference", "standard error", "p", "reads"]
        note = "p: p-value, corrected for the number of pairs"
        console.table("differences of FID", columns, tested, note)
    for remark in found.remarks:
        console.say(remark)
    for judged in found.results:
        for warning in judged.warnings:
            console.say(f"warning: {labels[judged.name]}: {warning}")


def _row(test: "PairTested", labels: dict[str, str]) -> list[str]:
    first, second = labels[test.first], labels[test.second]
    lower = first if test.difference < 0 else second
    reads = f"{lower} is lower" if test.p_of_all < _SURE else "no difference shown"
    kind = "" if test.is_paired else " (unpaired: their numbers of images differ)"
    numbers = [f"{test.difference:+.4g}", f"{test.standard_error:.2g}", f"{test.p_of_all:.2g}"]
    return [f"{first} - {second}", *numbers, reads + kind]


def _labels(names: list[str]) -> dict[str, str]:
    """Return the last part of each path, or all of it if two would be the same."""
    short = {name: Path(name).name for name in names}
    return short if len(set(short.values())) == len(set(names)) else {name: name for name in names}
