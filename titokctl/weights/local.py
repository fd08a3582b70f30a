"""Models with names on this machine: in our cache folder, in the package, or in the Hugging Face cache.

Our folder is TITOKCTL_WEIGHTS, by default titokctl/weights in the user's cache folder. In it, the model NAME is
`NAME.safetensors` (our layout or the official one) or a folder `NAME/` with the official files. The Hugging Face cache
is searched if huggingface_hub is installed (the `hub` extra).
"""

import os
from pathlib import Path

from titokctl.formats.atomic import user_cache
from titokctl.weights.known import BY_NAME, Known


def cache_folder() -> Path:
    """Return the folder for released weights: TITOKCTL_WEIGHTS, or titokctl/weights in the user's cache folder."""
    given = os.environ.get("TITOKCTL_WEIGHTS")
    return Path(given) if given else user_cache() / "titokctl" / "weights"


def where(known: Known) -> Path | None:
    """Return the file or folder with the weights of a released model, or None when it is not on this machine."""
    own = cache_folder() / f"{known.name}.safetensors"
    if own.is_file():
        return own
    if known.is_bundled:
        inside = bundled_file(known)
        return inside if inside.is_file() else None
    folder = cache_folder() / known.name
    if all((folder / file).exists() for file in known.files):
        return in_folder(folder, known)
    return _in_hub_cache(known)


def bundled_file(known: Known) -> Path:
    """Return the place in the package of a model that is part of it."""
    return Path(__file__).resolve().parents[1] / "bundled" / known.files[0]


def in_folder(folder: Path, known: Known) -> Path:
    """Return what to read in a folder with `known.files`: the folder itself, or the single file."""
    return folder if len(known.files) > 1 else folder / known.files[0]


def is_here(name: str) -> bool:
    """Return True if the released model `name` is on this machine."""
    return where(BY_NAME[name]) is not None


def _in_hub_cache(known: Known) -> Path | None:
    """Return the file or folder in the Hugging Face cache; None without it, or without the `hub` extra."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = [try_to_load_from_cache(known.repository, file) for file in known.files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return in_folder(paths[-1].parent, known) if len(paths) == len(known.files) else None
