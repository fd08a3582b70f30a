"""`titokctl tokenize`: images become a token cache, every image exactly once, however often the work is interrupted.

The source is cut into units. Each unit is decoded, encoded in tiles of a fixed number of images, and written as a part,
whole or not at all. The same command resumes with the parts that exist; when all do, they are merged in the order of
the source.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config.preprocessing import DEFAULT_MAX_PIXELS, PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources import Source, open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.imagenet import terms_of
from titokctl.data.sources.opening import check_paths
from titokctl.data.views import names_of
from titokctl.distributed.ray_cluster import Connection, RayCluster, check_installed
from titokctl.distributed.team import Team
from titokctl.errors import UsageError
from titokctl.formats.object_store import is_store
from titokctl.formats.replacing import check_name
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder
from titokctl.formats.token_store import parts_at
from titokctl.jobs.plan import WritePlan, cache_bytes, say_source, source_read
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings, checked_precision, header_of, settings_here
from titokctl.jobs.tokenize.local_parts import SAVED, LocalParts, PartMaker
from titokctl.jobs.tokenize.output import TokenizeResult, check_output
from titokctl.jobs.tokenize.ray_parts import RayParts
from titokctl.jobs.tokenize.work import TokenizeWork, parse_part
from titokctl.models.device import device_named
from titokctl.models.precision import Precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.load import load_tokenizer
from titokctl.weights.read import trained_with_exif

__all__ = ["Tokenize", "TokenizeResult"]

_KEY_BYTES = 16  # assumed length of an image's name, for the size that a plan estimates
_MAX_TERMS = 4096


@dataclass(frozen=True)
class Tokenize:
    """Make the token cache `output` of all images in `paths`, or resume it.

    Args:
        paths, source_kind, accept_cut, labels, label_table, choices: as for `open_source`.
        output: the file to make; until then `<output>.parts/` holds what is finished.
        tokenizer: as for `load_tokenizer`; None for the newest in the runs folder.
        views: further views of each image, names of `views.GROUPS`.
        batch_size: images in a tile; None for a size that suits the device. On a CPU the ids don't depend on it.
        precision: of the encoder, recorded in the cache; None for fp16 on a GPU and float32 on a CPU.
        workers: images that each process decodes at once; None for its share of the cores.
        max_rejected: the largest share of images that may be unusable; None for 0.1 %, or ten of a small set.
        crop, fast_decode, max_pixels: as for `PreprocessingConfig`.
        exif: apply the EXIF orientation; None for what the tokenizer was trained with.
        terms: terms of use of the images, recorded in the cache; None for ImageNet's where it is recognised.
        compress: deflate the rows of the file.
        keep_parts: `output` is a folder, and the parts stay in it.
        part: "i/n" for one of n jobs that share nothing but the output's folder: it makes the units u with
            u mod n = i mod n, and merges the parts if it is the last one to finish.
        overwrite: replace the output.
        cluster: the Ray cluster whose workers make the parts; None for this process and those of its group.

    Raises UsageError for unknown views and for options that exclude each other.
    """

    paths: Sequence[Path | str]
    output: Path
    tokenizer: str | None = None
    views: Sequence[str] = ("flip",)
    batch_size: int | None = None
    precision: Precision | None = None
    workers: int | None = None
    max_rejected: float | None = None
    source_kind: str | None = None
    accept_cut: bool = False
    labels: Path | None = None
    label_table: Path | None = None
    terms: str | None = None
    crop: str = "center"
    exif: bool | None = None
    fast_decode: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    compress: bool = False
    keep_parts: bool = False
    part: str | None = None
    overwrite: bool = False
    choices: Choices = NO_CHOICES
    cluster: RayCluster | None = None

    def __post_init__(self) -> None:
        names_of(self.views)
        if is_store(self.output) and not self.keep_parts:
            raise UsageError(
                f"{self.output} names one file, but an object store holds a folder of parts", f"e.g. -o {self.output}/"
            )
        if self.compress and self.keep_parts:
            raise UsageError("--compress is for one file, not for a folder of parts", "name a file, e.g. -o tokens.h5")
        if self.part is not None and parse_part(self.part) and self.overwrite:
            raise UsageError(
                "--part and --overwrite are mutually exclusive", "delete the output first, then start all jobs"
            )
        if self.part is not None and self.cluster is not None:
            raise UsageError("--part and --engine ray are mutually exclusive", "Ray divides the work by itself")
        if self.terms is not None and len(self.terms.encode()) > _MAX_TERMS:
            raise UsageError(f"--terms has more than {_MAX_TERMS:,} bytes", "give a link to the terms instead")

    def check(self, device: str) -> None:
        """Raise UsageError or UserError for all that can be refused without reading images or weights."""
        check_paths(self.paths)
        device_named(device)
        if self.cluster is None:
            checked_precision(self.precision, device)
        else:
            check_installed()
        if self.part is None:  # otherwise another job may have made the output
            check_output(self._parts(), self.overwrite)

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError as `run` does before it writes."""
        self.check(context.device)
        name = pick_tokenizer(self.tokenizer, context.runs, context.say)
        source = self._source(context, keep_index=False)
        say_source(source, context)
        with self._connected() as connection:
            work = self._work(name, source, context, connection, fetch=False)
        header, done = work.header, work.plan_done(self.overwrite)
        return WritePlan(
            reads=source_read(self.paths, source) | {"tokenizer": name},
            output=self.output,
            count=len(source),
            unit="rows",
            done=done,
            num_bytes=cache_bytes(header, len(source), len(source) * _KEY_BYTES),
            settings={
                "tokens_a_row": header.num_latent_tokens,
                "views": ["plain", *header.views],
                **{name: header.made_with[name] for name in ("precision", "device")},
                **({"terms": header.terms} if header.terms else {}),
            },
            removes=self._parts().files_to_delete() if self.overwrite and not (done and self.keep_parts) else (),
        )

    def run(self, context: Context) -> TokenizeResult | None:
        """Make the cache. Of several processes all but the first return None.

        Raises UserError when the output exists, when it was begun with other settings, or when too many images are
        unusable; Stopped after a signal, with the finished parts kept.
        """
        is_main = context.group.is_main
        if is_main:  # another process may find the finished output
            self.check(context.device)
        team = self._team(context)
        # Rank 0 chooses the tokenizer, and makes the source's index while the others wait.
        name = pick_tokenizer(self.tokenizer, context.runs, context.say) if is_main else team.get("tokenizer")
        source = self._source(context)
        if is_main:
            say_source(source, context)
            team.set("tokenizer", name)
        with self._connected() as connection:
            work = self._work(name, source, context, connection, team)
            if not is_main:
                work.follow()
                return None
            return work.lead(self.max_rejected, self.overwrite, self.compress)

    def _connected(self) -> AbstractContextManager[Connection | None]:
        return nullcontext() if self.cluster is None else self.cluster.connected()

    def _source(self, context: Context, keep_index: bool = True) -> Source:
        labels = self.labels, self.label_table
        return open_source(self.paths, self.source_kind, self.accept_cut, *labels, keep_index, self.choices, context)

    def _team(self, context: Context) -> Team:
        return Team(context.group, "tokenize", context.progress, lambda: context.stop.check(SAVED))

    def _parts(self) -> PartsFolder:
        if not is_store(self.output):
            check_name(self.output)  # parts lie beside the output, under names made from its own
        return parts_at(self.output, self.keep_parts)

    def _work(
        self,
        tokenizer: str,
        source: Source,
        context: Context,
        connection: Connection | None,
        team: Team | None = None,
        fetch: bool = True,
    ) -> TokenizeWork:
        model = load_tokenizer(tokenizer, context.device, fetch=fetch)
        exif = trained_with_exif(tokenizer, fetch) if self.exif is None else self.exif
        wanted = (self.batch_size, self.precision)
        if connection is None:
            header = self._header(source, model, exif, settings_here(*wanted, context.device))
            encoder = TileEncoder(model, UnitSettings.of(header, context.device))
            maker: PartMaker = LocalParts(source, encoder, self.workers)
        else:
            # Only a worker's machine knows the kernels of its GPU.
            header = self._header(source, model, exif, connection.call(settings_here, *wanted, connection.device))
            maker = RayParts(source, model, header, connection)
        part = None if self.part is None else parse_part(self.part)
        return TokenizeWork(source, header, maker, self._parts(), part, context, team or self._team(context))

    def _header(self, source: Source, model: TiTok, exif: bool, makers: dict[str, Any]) -> CacheHeader:
        preprocessing = PreprocessingConfig.model_validate(
            {
                "size": model.config.image_size,
                "crop": self.crop,
                "exif": exif,
                "fast_decode": self.fast_decode,
                "max_pixels": self.max_pixels,
            }
        )
        settings = UnitSettings(preprocessing, names_of(self.views))
        terms = terms_of(source) if self.terms is None else self.terms
        return header_of(model, settings, makers, source.description, source.class_names, terms)
