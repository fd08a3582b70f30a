"""A product of this machine, and the file and the facts of it that may be shared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titokctl.config.models import GeneratorSizes, TokenizerConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import read_json
from titokctl.formats.file_kind import head_of
from titokctl.formats.replacing import CACHE
from titokctl.formats.run_folder import RunFolder, open_run
from titokctl.formats.shared_product import TOKENS
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.jobs.caches.merge import append_rows
from titokctl.jobs.machine.run_table import scores_of
from titokctl.jobs.machine.runs import find_run
from titokctl.jobs.share.card import About, generator_in_words, tokenizer_in_words
from titokctl.jobs.share.lineage import public_inputs, public_metadata, public_source, without_paths
from titokctl.readable import counted
from titokctl.weights.hashes import product_hashes
from titokctl.weights.known import BY_NAME
from titokctl.weights.read import locate, read
from titokctl.weights.references import Located
from titokctl.weights.store import Weights, build, save

_SOURCES = {"data": "training", "source": "training", "validation": "held out"}
_NO_SHARE = "a sample set is not shared"


@dataclass(frozen=True)
class SharedWeights:
    """Weights that may be shared: where they lie, and their run if they have one."""

    path: Path
    weights: Weights
    run: RunFolder | None

    @property
    def kind(self) -> str:
        """The kind of network."""
        return self.weights.kind

    def write(self, path: Path, context: Context) -> dict[str, str]:
        """Write the weights file without paths in its metadata, and return the product's hashes."""
        inputs = public_inputs(json.loads(self.weights.extra.get("inputs", "{}")))
        extra = public_metadata(self.weights.extra) | ({"inputs": json.dumps(inputs)} if inputs else {})
        save(path, replace(self.weights, extra=extra))
        return product_hashes(build(self.weights, str(self.path), "cpu", None))

    def about(self) -> About:
        """Return the facts for the card."""
        inputs = json.loads(self.weights.extra.get("inputs", "{}")) | (self.run.inputs if self.run else {})
        images = {part: public_source(inputs[name]) for name, part in _SOURCES.items() if _is_known(inputs.get(name))}
        return About(
            _in_words(self.weights),
            images,
            scores_of(self.run) if self.run else {},
            self.run.settings if self.run else {},
            tuple(map(str, inputs.get("class_names") or ())),
            str(inputs.get("terms") or ""),
            self.run.versions if self.run else {},
        )


@dataclass(frozen=True)
class SharedTokens:
    """A token cache that may be shared."""

    path: Path
    cache: TokenCache
    kind: str = TOKENS

    def write(self, path: Path, context: Context) -> dict[str, str]:
        """Write the cache as one file without paths in its header, and return its hashes."""
        head = self.cache.header
        source, made_with = public_source(head.source), without_paths(head.made_with)
        header = replace(head, source=source, made_with=made_with, preprocessing=without_paths(head.preprocessing))
        context.progress.start("copy", len(self.cache), "rows")
        with TokenCacheWriter(path, header, num_rows=len(self.cache), key_bytes=self.cache.key_room) as writer:
            append_rows(writer, self.cache, context)
        context.progress.close()
        return {"encoder_sha256": head.encoder_sha256, "ids_sha256": self.cache.sha256}

    def about(self) -> About:
        """Return the facts for the card."""
        head = self.cache.header
        what = f"{counted(len(self.cache), 'images')} of {head.image_size} px as {head.num_latent_tokens} tokens each"
        of = f"of {head.codebook_size:,} codes" if head.codebook_size else f"of {head.token_size} numbers"
        views = f", in the views {', '.join(self.cache.views)}" if head.views else ""
        package, _, version = head.created_by.partition(" ")
        return About(
            f"A token cache of titokctl: {what}, {of}{views}.",
            {"tokenized": public_source(head.source)},
            classes=head.class_names,
            terms=head.terms,
            versions={package: version} if version else {},
        )


def find_product(given: str, context: Context) -> SharedWeights | SharedTokens:
    """Return the product that is meant: a token cache's path, or weights as RUN|FILE.

    Raises UserError when nothing is there or it can't be read, UsageError for what can't be shared.
    """
    path = Path(given)
    if _is_cache(path):
        return SharedTokens(path, TokenCache.open_whole(path))
    if given in BY_NAME and not path.exists():
        raise UsageError(f"{given} is a released model, not yours to share", "name a run of your own: `titokctl runs`")
    run = None
    if not path.is_file():
        run = find_run(given.partition("@")[0], context.runs)
        if run.kind == "samples":
            raise UsageError(f"{given}: {_NO_SHARE}", "share its generator, which draws it again")
        given = str(run.path) + given[len(given.partition("@")[0]) :]
    located = locate(given, fetch=False)
    return SharedWeights(located.path, read(located), run if run is not None else _run_beside(located))


def _is_cache(path: Path) -> bool:
    if path.is_file():
        return CACHE.begins(head_of(path))
    manifest = path / "manifest.json"
    record = read_json(manifest) if manifest.is_file() else None
    return isinstance(record, dict) and "complete" in record


def _run_beside(located: Located) -> RunFolder | None:
    """Return the run whose product lies at this path."""
    try:
        run = open_run(located.path.parent)
    except (UserError, OSError, ValueError):
        return None
    return run if located.path.name in _products(run) else None


def _products(run: RunFolder) -> Sequence[str]:
    return [str(product.product) for product in run.products]


def _is_known(source: Any) -> bool:
    return isinstance(source, dict) and isinstance(source.get("num_samples"), int)


def _in_words(weights: Weights) -> str:
    if isinstance(weights.config, TokenizerConfig):
        return tokenizer_in_words(weights.config)
    if isinstance(weights.config, GeneratorSizes):
        return generator_in_words(weights.config)
    return "A VQGAN, whose codes are the targets of a TiTok tokenizer's first stage."
