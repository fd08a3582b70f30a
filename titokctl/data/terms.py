"""Under which terms images stand, as far as a source tells. Ids decode to pictures, so their cache says it, too."""

from pathlib import Path

from titokctl.data.sources.source import Source
from titokctl.data.synsets import is_synset

IMAGENET = (
    "ImageNet: for non-commercial research and education only (image-net.org/download); ids decode to its pictures"
)


def terms_of(source: Source) -> str:
    """ImageNet's terms where it is recognised, by classes named by synsets or files named ILSVRC2012_...; else ""."""
    is_imagenet = bool(source.class_names) and all(map(is_synset, source.class_names))
    paths = source.description.get("paths", ())
    return IMAGENET if is_imagenet or any(Path(path).name.startswith("ILSVRC2012_") for path in paths) else ""
