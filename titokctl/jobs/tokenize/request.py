"""`titokctl tokenize`: images -> a token cache, every image exactly once, whatever happens on the way.

The source is cut into units, which processes claim one by one. Decoded units wait in a short queue; each is encoded in
tiles of a fixed number of images and written as a part, whole or not at all. The same command goes on with the parts
that are there; when all are, they are merged in the order of the source.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titokctl import __version__
from titokctl.config.preprocessing import DEFAULT_MAX_PIXELS, PreprocessingConfig
from titokctl.data.sources import Source, open_source
from titokctl.data.sources.imagenet import terms_of
from titokctl.data.sources.opening import check_paths
from titokctl.data.views import names_of, view
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.team import Team
from titokctl.dry_run import about_to_write, is_dry_run
from titokctl.errors import UsageError
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder
from titokctl.jobs.plan import WritePlan, cache_bytes, source_read
from titokctl.jobs.tokenize.encode import TileEncoder, made_with
from titokctl.jobs.tokenize.job import TokenizeResult, TokenJob
from titokctl.jobs.tokenize.output import check_output, check_space, finished_before
from titokctl.jobs.tokenize.work import SAVED, parse_part
from titokctl.models.device import default_batch_size, device_named
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.load import load_tokenizer

_KEY_BYTES = 16  # of an image's name, for the size that a dry run tells

__all__ = ["TokenizeResult", "check_output", "check_request", "tokenize"]


def tokenize(
    paths: Sequence[Path | str],
    output: Path,
    tokenizer: str | None,
    runs: Path,
    *,
    views: Sequence[str] = ("flip",),
    batch_size: int | None = None,
    precision_name: Precision = "float32",
    workers: int | None = None,
    max_rejected: float | None = None,
    source_kind: str | None = None,
    accept_cut: bool = False,
    labels: Path | None = None,
    label_table: Path | None = None,
    crop: str = "center",
    exif: bool = False,
    fast_decode: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    overwrite: bool = False,
    keep_parts: bool = False,
    compress: bool = False,
    part: str | None = None,
    terms: str | None = None,
    device: str = "cpu",
    group: Group | None = None,
    progress: Progress,
    stop: StopRequest,
) -> TokenizeResult | None:
    """Make the token cache `output` of all images in `paths`, or go on with it.

    Args:
        paths: what `open_source` takes, as are `source_kind`, `accept_cut`, `labels` and `label_table`.
        output: the file to make; `<output>.parts/` holds what is finished until then.
        tokenizer: what `load_tokenizer` takes; None for the newest in the runs folder.
        runs: the runs folder.
        views: further views of each image, names of `views.GROUPS`.
        batch_size: images a tile; None for what suits the device. On a CPU the ids don't depend on it.
        workers: images that each process decodes at once; None for its share of the cores.
        max_rejected: the largest share of images that may be unusable; None as `allowed_share` says.
        keep_parts: `output` is a folder, and the parts stay in it. compress: deflate the rows of the file.
        part: "i/n" for one of several jobs that share no process group and claim units through files.
        terms: of the images, for the record; None for ImageNet's where it is recognised.
        group: None for this process alone; of several all but the first return None.

    Raises: UserError when the output exists, the settings changed, or too many images are unusable; Stopped after a
        signal.
    """
    group = group or single_group()
    if group.is_main:  # the output may be there when another process comes
        check_request(paths, output, views, overwrite, keep_parts, compress, part, precision_name, device)
    team = Team(group, "tokenize", progress, lambda: stop.check(SAVED))
    # Rank 0 decides about the tokenizer, and makes the source's index while the others wait.
    name = pick_tokenizer(tokenizer, runs, progress.say) if group.is_main else team.hear("tokenizer")
    source = open_source(paths, source_kind, accept_cut, labels, label_table, not is_dry_run())
    if group.is_main:
        team.tell("tokenizer", name)
    model = load_tokenizer(name, device, fetch=not is_dry_run())
    squared = {"size": model.config.image_size, "crop": crop, "exif": exif}
    preprocessing = PreprocessingConfig.model_validate(squared | {"fast_decode": fast_decode, "max_pixels": max_pixels})
    makers = made_with(batch_size or default_batch_size(device, "encode"), precision_name, device)
    header = _header(source, model, preprocessing, names_of(views), makers, terms)
    encoder, folder = TileEncoder(model, header, device), PartsFolder(output, keep_parts)
    job = TokenJob(source, encoder, folder, team, part, workers, progress, stop)
    if group.is_main:
        about_to_write(lambda: _plan(paths, name, job, overwrite))
    return job.lead(max_rejected, overwrite, compress) if group.is_main else job.follow()


def _plan(paths: Sequence[Path | str], tokenizer: str, job: TokenJob, overwrite: bool) -> WritePlan:
    """What `job` would do, after the checks that it begins with."""
    source, header, folder = job.source, job.encoder.header, job.folder
    if not overwrite and finished_before(folder.output, header) is not None:
        done = len(source)
    else:
        check_space(folder.output, header, len(source))
        parts = folder.finished() if folder.goes_on(header, len(source.units), overwrite and not job.part) else ()
        done = sum(source.units[i].count for i in parts if i < len(source.units))
    return WritePlan(
        reads=source_read(paths, source) | {"tokenizer": tokenizer},
        output=folder.output,
        count=len(source),
        unit="rows",
        done=done,
        num_bytes=cache_bytes(header, len(source), _KEY_BYTES),
        settings={
            "tokens_a_row": header.num_latent_tokens,
            "views": ["plain", *header.views],
            **{name: header.made_with[name] for name in ("precision", "device")},
            **({"terms": header.terms} if header.terms else {}),
        },
        replaces=overwrite and folder.output.exists() and not (done and folder.keep),
    )


def _header(
    source: Source,
    model: TiTok,
    preprocessing: PreprocessingConfig,
    views: Sequence[str],
    made_with: dict[str, Any],
    terms: str | None,
) -> CacheHeader:
    return CacheHeader(
        tokenizer=model.config.model_dump(mode="json"),
        encoder_sha256=encoder_sha256(model),
        weights_sha256=weights_sha256(model),
        codebook_size=(model.config.codebook_size or 0) if model.config.is_discrete else 0,
        num_latent_tokens=model.config.num_latent_tokens,
        image_size=model.config.image_size,
        preprocessing=preprocessing.model_dump(mode="json"),
        source=json.loads(json.dumps(source.description)),
        views={name: view(name, preprocessing).record for name in views},
        class_names=tuple(source.class_names),
        created_by=f"titokctl {__version__}",
        made_with=made_with,
        token_size=0 if model.config.is_discrete else model.config.token_size,
        terms=terms_of(source) if terms is None else terms,
    )


def check_request(
    paths: Sequence[Path | str],
    output: Path,
    views: Sequence[str],
    overwrite: bool,
    keep_parts: bool,
    compress: bool,
    part: str | None,
    precision_name: Precision,
    device: str,
) -> None:
    """All that can be said about a request without reading images or weights. Raises UsageError and UserError."""
    check_paths(paths)
    device_named(device)
    try:
        with precision(precision_name, device):
            pass
    except ValueError as error:
        raise UsageError(str(error)) from error
    names_of(views)
    if compress and keep_parts:
        raise UsageError("--compress is for one file, not for a folder of parts", "name a file, e.g. -o tokens.h5")
    if part is None:
        check_output(output, overwrite, keep_parts)
    elif parse_part(part) and overwrite:
        raise UsageError("--part and --overwrite exclude each other", "delete the output first, then start all jobs")
