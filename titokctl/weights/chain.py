"""Products of other commands, found when none is named.

Only the first link is chosen by age (the newest finished run that fits); every further one follows the hashes that
were recorded when it was made. Every choice is reported through `say`.
"""

from pathlib import Path

from titokctl.errors import UserError
from titokctl.formats.run_folder import RunFolder, finished_runs, newest_run
from titokctl.weights.references import Say, in_runs

DEFAULT_TOKENIZER = "titok-l-32"


def pick_tokenizer(given: str | None, root: Path, say: Say, pixels: bool = False) -> str:
    """Return an argument for `load_tokenizer`: `given`, else the newest trained one under `root`, else titok-l-32.

    Args:
        pixels: take only one that can decode; after stage proxy alone a tokenizer makes ids but no pixels.

    Raises UserError, which says how to train or get one, if there is none.
    """
    if given is not None:
        return in_runs(given, root, "tokenizer", say)
    run = newest_run(root, "tokenizer", _makes_pixels if pixels else lambda run: True)
    if run is not None:
        say(f"tokenizer: {run.reference} (the newest in {root}/tokenizer)")
        return run.reference
    from titokctl.weights.local import is_here

    if is_here(DEFAULT_TOKENIZER):
        say(f"tokenizer: {DEFAULT_TOKENIZER} (none was trained in {root})")
        return DEFAULT_TOKENIZER
    raise UserError(
        f"no tokenizer was named, none was trained in {root}, and {DEFAULT_TOKENIZER} is not on this machine",
        "train one (`titokctl train-tokenizer DATA --recipe tiny`), name one with --tokenizer, or run "
        f"`titokctl weights ls` to see where {DEFAULT_TOKENIZER} comes from",
    )


def tokenizer_with(encoder_sha256: str, weights_sha256: str, given: str | None, root: Path, say: Say) -> str:
    """Return the tokenizer that decodes ids of the encoder with `encoder_sha256`: `given`, or one under `root`.

    One with exactly `weights_sha256` is preferred; another decoder of the same encoder fits too.
    """
    if given is not None:
        return in_runs(given, root, "tokenizer", say)
    same = [run for run in finished_runs(root, "tokenizer") if run.hashes.get("encoder_sha256") == encoder_sha256]
    fitting = [run for run in same if _makes_pixels(run)]
    if same and not fitting:
        found = same[0].reference
        raise UserError(
            f"the tokenizer that made these ids, {found}, was trained in stage proxy only and does not produce pixels",
            f"train its decoder first: titokctl train-tokenizer DATA --recipe NAME-decoder --init {found}",
        )
    exact = [run for run in fitting if run.hashes.get("weights_sha256") == weights_sha256]
    if not exact and len({run.hashes.get("weights_sha256") for run in fitting}) > 1:
        raise UserError(
            f"several tokenizers fit these ids equally well: {', '.join(run.reference for run in fitting)}",
            "name the one you mean with --tokenizer",
        )
    if exact or fitting:
        chosen = (exact or fitting)[0]
        say(f"tokenizer: {chosen.reference} (recorded by its hash)")
        return chosen.reference
    from titokctl.weights.read import name_with_encoder

    known = name_with_encoder(encoder_sha256)
    if known is not None:
        say(f"tokenizer: {known} (recorded by its hash)")
        return known
    raise UserError(
        f"the tokenizer that made these ids (encoder {encoder_sha256[:12]}) is not in {root}",
        "name its weights with --tokenizer",
    )


def pick_generator(given: str | None, root: Path, say: Say, encoder: str | None = None) -> str:
    """Return an argument for `load_generator`: `given`, else the newest trained one under `root`.

    With `encoder`, the encoder_sha256 of a tokenizer, the newest one that was trained on its ids, if there is one.
    """
    if given is not None:
        return in_runs(given, root, "generator", say)
    if encoder is not None:
        fitting = newest_run(root, "generator", lambda run: run.inputs.get("encoder_sha256") == encoder)
        if fitting is not None:
            say(f"generator: {fitting.reference} (the newest in {root}/generator that was trained on such ids)")
            return fitting.reference
    return _newest(root, "generator", "train one with `titokctl train-gen tokens.h5`", say).reference


def pick_samples(given: Path | None, root: Path, say: Say) -> Path:
    """Return the samples to judge: `given`, else the newest sample set under `root`."""
    if given is not None:
        return given
    return _newest(root, "samples", "draw some with `titokctl sample --cfg 4.0 -n 50000`", say).path


def _makes_pixels(run: RunFolder) -> bool:
    model = run.settings.get("model")
    return not isinstance(model, dict) or model.get("pixel_decoder", True) is True


def _newest(root: Path, kind: str, hint: str, say: Say) -> RunFolder:
    run = newest_run(root, kind)
    if run is None:
        raise UserError(f"no {kind} was named, and there is no finished one in {root}", hint)
    say(f"{kind}: {run.reference} (the newest in {root}/{kind})")
    return run
