"""The request of `titokctl sample`: a generator and its tokenizer -> a sample set."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titokctl.config import recipe_files
from titokctl.config.guidance_scale import doubt, parse_interval, parse_scale
from titokctl.config.yaml_reader import read_mapping
from titokctl.context import Context
from titokctl.distributed.ray_cluster import Connection, RayCluster
from titokctl.distributed.team import Team
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.image_output import ChunkWriter, ImageFormat
from titokctl.formats.replacing import check_name
from titokctl.formats.sample_set import check_fits, files_of, not_a_set, state_of, unfinished
from titokctl.jobs.plan import WritePlan, cache_bytes, image_bytes
from titokctl.jobs.sample.inputs import (
    FLAGS,
    Calculation,
    SampleTask,
    build_networks,
    calculation,
    find_generator,
    find_tokenizer,
    networks_hashes,
    plan_for,
    settings_for,
)
from titokctl.jobs.sample.kept_tokens import open_kept
from titokctl.jobs.sample.ray_tiles import RayTiles
from titokctl.jobs.sample.scoring import Judge
from titokctl.jobs.sample.tiles import LocalTiles, TileMaker
from titokctl.jobs.sample.work import Sampled, SampleWork
from titokctl.models.device import default_batch_size
from titokctl.models.precision import PRECISIONS, Precision
from titokctl.readable import counted
from titokctl.sampling.decoding import too_many_steps
from titokctl.sampling.plan import Classes
from titokctl.weights.hashes import check_encoder

__all__ = ["Sample", "Sampled"]

_LEAST = {
    "num_steps": 1,
    "choice_temperature": 0,
    "remasking_cap": 0,
    "temperature": 0,
    "top_k": 1,
    "guidance_power": 1e-3,
}
_TEXTS: dict[str, Callable[[str], Any]] = {"guidance_scale": parse_scale, "guidance_interval": parse_interval}


@dataclass(frozen=True)
class Sample:
    """Draw a sample set, or resume the unfinished one with the same settings.

    The set lies in its run folder, <runs>/samples/<name>, or in `output`; then the run folder points to it, so that
    `titokctl fid` finds the newest samples. Processes of a group share the work, and each returns the same result.

    Args:
        generator, tokenizer: run folder, file or known name; None finds the newest generator and its tokenizer.
        num_images: size of the set; 64 by default.
        per_class: number of images of each class, instead of `num_images`.
        classes: class numbers or names; "all"; "none" for images without a class; None for all that were learnt.
        settings: sampling settings that differ from the generator's own. The guidance_scale may also be text: "4.0",
            or "5.0w" as DiT and diffusers count it; and so may the guidance_interval: "0.2,0.8".
        settings_file: sampling settings as YAML, such as `titokctl tune` writes, or the name of a shipped preset.
            `settings` override it, and it overrides the generator's own.
        output: folder of the set; by default a run folder named by the settings.
        image_format: None for "npz", or for "none" with `fid`.
        batch_size: images decoded at once; it does not change which ids are drawn.
        precision: of generator and decoder; None for the device's fastest.
        fid: statistics or images to compare the drawn images with, while they are drawn.
        features: name of the feature network for `fid`.
        inception_weights: file of the feature network, instead of the usual one.
        overwrite: replace the set in `output`.
        keep: a token cache of the same tokenizer; image i keeps ids of its row i mod N, and has the row's label unless
            `classes` says otherwise. An image for each of the N rows by default.
        keep_tokens: the positions, from 0 on, whose ids are kept; the others are drawn.
        cluster: a Ray cluster whose workers draw the images; the images are the same.
    """

    generator: str | None = None
    tokenizer: str | None = None
    num_images: int | None = None
    per_class: int | None = None
    classes: Classes = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    image_format: ImageFormat | None = None
    batch_size: int | None = None
    precision: Precision | None = None
    fid: Path | None = None
    features: str = "inception"
    inception_weights: Path | None = None
    overwrite: bool = False
    settings_file: str | None = None
    keep: Path | None = None
    keep_tokens: Sequence[int] = ()
    cluster: RayCluster | None = None

    def __post_init__(self) -> None:
        at_least = [
            ("-n", self.num_images, 1),
            ("--per-class", self.per_class, 1),
            ("--batch-size", self.batch_size, 1),
            *((FLAGS[name], self.settings.get(name), least) for name, least in _LEAST.items()),
        ]
        for flag, value, least in at_least:
            if value is not None and not least <= value < math.inf:
                raise UsageError(f"{flag} must be at least {least}, not {value}", "see `titokctl sample --help`")
        if (top_p := self.settings.get("top_p")) is not None and not 0 < top_p <= 1:
            raise UsageError(f"--top-p must be above 0 and at most 1, not {top_p}", "--top-p 1 allows all codes")
        self._changes()
        if self.num_images is not None and self.per_class is not None:
            raise UsageError("-n and --per-class are mutually exclusive", "give one of them")
        if (self.keep is None) != (not self.keep_tokens):
            raise UsageError("--keep and --keep-tokens belong together", "e.g. --keep ids.h5 --keep-tokens 0-15")
        if self.precision not in (None, *PRECISIONS):
            raise UsageError(f"unknown precision {self.precision!r}", f"one of: {', '.join(PRECISIONS)}")
        if self.fid is None and (self.features != "inception" or self.inception_weights is not None):
            raise UsageError("--features and --inception-weights belong to --fid", "add --fid REF")
        if self.output is not None and self.output.suffix in (".npz", ".png", ".h5"):
            folder = self.output.with_suffix("")
            raise UsageError(f"-o {self.output} names a file, but a sample set is a folder", f"e.g. -o {folder}")

    def check(self, device: str) -> None:
        """Raise UserError when the output holds something else than a sample set."""
        state = "empty" if self.output is None else state_of(self.output)
        if self.output is not None and state == "foreign":
            raise not_a_set(self.output)
        if self.output is not None:
            check_name(self.output)
        if self.output is not None and self.overwrite:
            files_of(self.output)  # raises when other files lie among its images
        if self.fid is not None and not self.fid.exists():
            raise UserError(f"no such file or folder: {self.fid}", "check the argument of --fid")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be drawn.

        Raises UserError or UsageError when the inputs don't fit each other, or the output is taken.
        """
        with self._connected() as connection:
            work = self._work(context, connection, fetch=False)
        task, folder = work.task, work.folder
        unfinished(folder).check_not_at_work()
        before = check_fits(folder, task.identity, self.overwrite)
        count, kept = task.plan.num_images, ChunkWriter(unfinished(folder).folder, None)
        if before == "unfinished":
            kept.read_chunks()
        images = image_bytes(task.image_format, count, task.tokenizer.config.image_size)
        networks = (("generator", task.generator), ("tokenizer", task.tokenizer))
        return WritePlan(
            reads={name: str(given.path) for name, given in networks},
            output=folder,
            count=count,
            done=count if before == "finished" else kept.num_done,
            num_bytes=None if images is None else images + cache_bytes(task.header(), count, count * len(str(count))),
            settings={
                "image_format": task.image_format,
                "classes": None if task.plan.classes is None else len(set(task.plan.classes)),
                **task.sampling.model_dump(mode="json"),
                "precision": task.precision,
                "device": task.device,
            },
            removes=[str(folder / name) for name in files_of(folder)] if before != "finished" else (),
        )

    def run(self, context: Context) -> Sampled:
        """Draw the set. Raises as `plan`; Stopped after a signal, with the finished part kept."""
        with self._connected() as connection:
            work = self._work(context, connection, fetch=True)
            return work.lead(self.overwrite) if context.group.is_main else work.follow()

    def _connected(self) -> AbstractContextManager[Connection | None]:
        return nullcontext() if self.cluster is None else self.cluster.connected()

    def _work(self, context: Context, connection: Connection | None, fetch: bool) -> SampleWork:
        """Check the request, and prepare this process's part in it; `fetch` allows downloads."""
        group, say = context.group, context.say
        if group.is_main:  # the output may exist by the time that another process checks
            self.check(context.device)
        judge, scale = self._judge(context, fetch), self.settings.get("guidance_scale")
        if isinstance(scale, str) and doubt(scale):
            say(doubt(scale))
        team = Team(group, "sample", context.progress, context.stop.check)
        # The newest generator that rank 0 finds need not be the newest that another rank finds.
        generator, tokenizer = (self.generator, self.tokenizer) if group.is_main else team.get("networks")
        found = find_generator(generator, context.runs, say, fetch)
        kept = open_kept(self.keep, self.keep_tokens, found.config) if self.keep is not None else None
        device = context.device if connection is None else connection.device
        plan = plan_for(found, self.classes, self.num_images, self.per_class, device, say, kept)
        changes = self._changes()
        sampling = settings_for(found, changes, say)
        if judge is not None and plan.num_images < 2:
            raise UsageError(f"--fid needs at least 2 images, not {plan.num_images}", "draw more with -n")
        decoder = find_tokenizer(tokenizer, found, context.runs, say, fetch)
        if group.is_main:
            team.set("networks", [str(found.path.absolute()), str(decoder.path.absolute())])
        how: Calculation = (
            calculation(device, self.precision)
            if connection is None
            else connection.call(
                calculation,
                device,
                self.precision,  # only a worker's machine knows the kernels of its GPU
            )
        )
        networks = build_networks(found, decoder, device, how.precision) if connection is None else None
        hashes = networks.hashes if networks is not None else networks_hashes(found, decoder)
        if kept is not None:
            made_by, hint = kept.cache.header.encoder_sha256, "tokenize the images with the tokenizer of the generator"
            check_encoder(str(kept.cache.path), made_by, decoder.name, hashes["encoder_sha256"], hint)
        task = SampleTask(
            found,
            decoder,
            hashes,
            sampling,
            plan,
            self.image_format or ("npz" if judge is None else "none"),
            how,
            min(self.batch_size or default_batch_size(device, "decode"), plan.tile_size),
            judge.description if judge else None,
            kept,
        )
        _say_settings(task, context)
        if networks is not None:
            maker: TileMaker = LocalTiles(task, networks, judge.extractor if judge else None)
        else:
            assert connection is not None
            maker = RayTiles(task, judge.network if judge else None, connection, context.progress.warn)
        return SampleWork(task, maker, self.output, judge, team, context)

    def _judge(self, context: Context, fetch: bool) -> Judge | None:
        if self.fid is None:
            return None
        return Judge(self.fid, FeatureNetwork(self.features, self.inception_weights), context, fetch)

    def _changes(self) -> dict[str, Any]:
        """Return the settings of the file and of the request, with their texts read."""
        found = dict(self.settings)
        if self.settings_file is not None:
            found = read_mapping(recipe_files.find(self.settings_file, "sampling")) | found
        texts = {name: value for name, value in found.items() if isinstance(value, str) and name in _TEXTS}
        return found | {name: _TEXTS[name](text) for name, text in texts.items()}


def _say_settings(task: SampleTask, context: Context) -> None:
    sampling, config = task.sampling, task.generator.config
    if remark := too_many_steps(sampling, config.num_latent_tokens):
        context.progress.warn(remark)
    labels = task.plan.classes
    classes = "no classes" if labels is None else f"{len(set(labels))} of {counted(config.num_classes, 'classes')}"
    images = counted(task.plan.num_images, "images")
    context.say(f"{images}, {classes}, seed {sampling.seed}, {sampling.in_words()}; {task.precision}")
