"""The interface of jobs, and the plans that --dry-run prints.

A job is a frozen dataclass of what the user asked for. Its constructor refuses values that are wrong by themselves;
`plan` makes all other checks and describes the output; `run` does the work. The command line and Python programs use
the same objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from titokctl.context import Context
from titokctl.data.sources import Source
from titokctl.data.sources.source import passed_over_in_words
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_header import CacheHeader

PlanT = TypeVar("PlanT", covariant=True)
ResultT = TypeVar("ResultT", covariant=True)
_LABEL_BYTES = 4
_NAMED = 3


class Job(Protocol[PlanT, ResultT]):
    """The work of one command. The constructor raises UsageError for values that are wrong with any input."""

    def plan(self, context: Context) -> PlanT:
        """Check everything and return what `run` would write; nothing is written or downloaded.

        Raises the UserErrors and UsageErrors that `run` raises before its work begins.
        """

    def run(self, context: Context) -> ResultT:
        """Do the work, or resume it, and return the result.

        Raises UserError or UsageError, and Stopped after a signal, with finished parts kept.
        """


class ReadingJob(Protocol[ResultT]):
    """The work of a command that writes nothing."""

    def run(self, context: Context) -> ResultT:
        """Do the work and return its result. Raises UserError or UsageError, and Stopped after a signal."""


@dataclass(frozen=True)
class WritePlan:
    """The output that a job would write.

    Args:
        reads: its inputs, by name; JSON values.
        output: the file or folder.
        count, unit: how many images or rows it will hold; an earlier run has finished `done` of them.
        num_bytes: its approximate size; None where that depends on the images' contents.
        settings: the other settings that decide its contents, by name; JSON values.
        removes: paths of existing files that would be deleted or replaced.
    """

    reads: dict[str, Any]
    output: Path
    count: int
    unit: str = "images"
    done: int = 0
    num_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    removes: Sequence[str] = ()

    @property
    def replaces(self) -> bool:
        """True if something at `output` would be replaced."""
        return bool(self.removes)


def source_read(paths: Sequence[Path | str], source: Source) -> dict[str, Any]:
    """Describe a source of images for a plan: paths, images and classes; no image is decoded."""
    named = [str(path) for path in paths[:_NAMED]]
    more = [f"and {len(paths) - _NAMED:,} more"] if len(paths) > _NAMED else []
    facts = {"source": ", ".join(named + more), "images": len(source), "classes": len(source.class_names)}
    return facts | ({"unusable": len(source.problems)} if source.problems else {})


def say_source(source: Source, context: Context) -> None:
    """Say how the files were read where that decides about labels, and how many files were passed over."""
    for remark in source.remarks:
        context.say(remark)
    if source.passed_over:
        context.say(f"passed over: {passed_over_in_words(source.passed_over)}")


def cache_read(cache: TokenCache, view: str | None = None) -> dict[str, Any]:
    """Describe a token cache, and the view that is read, for a plan."""
    facts = {"tokens": str(cache.path), "rows": len(cache), "tokens_a_row": cache.header.num_latent_tokens}
    return facts | ({"view": view} if view else {})


def cache_bytes(header: CacheHeader, rows: int, key_bytes: int) -> int:
    """Return the approximate size in bytes of a token cache that isn't compressed; `key_bytes` are of all keys."""
    return rows * (header.row_bytes + _LABEL_BYTES) + key_bytes


def image_bytes(image_format: str, images: int, image_size: int) -> int | None:
    """Return the approximate size in bytes of a set of images; None where that depends on their contents."""
    return images * image_size**2 * 3 if image_format == "npz" else 0 if image_format == "none" else None


def rows_bytes(rows: np.ndarray) -> int:
    """Return the size in bytes of all rows of a view, without reading them."""
    return int(np.prod(rows.shape)) * rows.dtype.itemsize
