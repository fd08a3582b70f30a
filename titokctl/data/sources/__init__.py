"""Sources of images: `open_source` recognises the kind, `Source` and `SeekableSource` are the interfaces."""

from titokctl.data.sources.opening import KINDS, open_source, reopen_source
from titokctl.data.sources.source import UNIT_SIZE, Rejected, Sample, SeekableSource, Source, Unit

__all__ = [
    "KINDS",
    "UNIT_SIZE",
    "Rejected",
    "Sample",
    "SeekableSource",
    "Source",
    "Unit",
    "open_source",
    "reopen_source",
]
