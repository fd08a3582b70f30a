"""Where samples come from. `open_source` recognises what it is given; `Source` says what every source offers."""

from titokctl.data.sources.opening import KINDS, open_source, reopen_source
from titokctl.data.sources.source import UNIT_SIZE, Rejected, Sample, Source, Unit

__all__ = ["KINDS", "UNIT_SIZE", "Rejected", "Sample", "Source", "Unit", "open_source", "reopen_source"]
