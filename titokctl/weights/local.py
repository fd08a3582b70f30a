"""Where released models lie on this machine: our cache folder, then the Hugging Face cache.

Ours is TITOKCTL_WEIGHTS, else titokctl/weights in the user's cache folder; a model NAME is `NAME.safetensors` there
(ours or official) or a folder `NAME/` with the official files. The other cache is read by its published layout, so
that huggingface_hub is not needed for what it once fetched.
"""

import os
from pathlib import Path

from titokctl.formats.atomic import user_cache
from titokctl.weights.known import BY_NAME, Known, of_kind


def cache_folder() -> Path:
    """Where people put weights: TITOKCTL_WEIGHTS, else ~/.cache/titokctl/weights (XDG_CACHE_HOME counts)."""
    given = os.environ.get("TITOKCTL_WEIGHTS")
    return Path(given) if given else user_cache() / "titokctl" / "weights"


def where(known: Known) -> Path | None:
    """The file or folder with the weights of a released model, or None when it is not on this machine."""
    own = cache_folder() / f"{known.name}.safetensors"
    if own.is_file():
        return own
    for folder in (cache_folder() / known.name, *_snapshots(known.repository)):
        if all((folder / file).exists() for file in known.files):
            return in_folder(folder, known)
    return None


def in_folder(folder: Path, known: Known) -> Path:
    """What to read in a folder that holds `known.files`: the folder itself, or the single file."""
    return folder if len(known.files) > 1 else folder / known.files[0]


def is_here(name: str) -> bool:
    """Whether the released model called `name` is on this machine."""
    return where(BY_NAME[name]) is not None


def name_with_encoder(encoder_sha256: str) -> str | None:
    """The released tokenizer on this machine whose encoder has this hash, or None."""
    from titokctl.weights.build import build
    from titokctl.weights.hashes import encoder_sha256 as hash_of
    from titokctl.weights.read import read

    for known in of_kind("tokenizer"):
        path = where(known)
        if path is None:
            continue
        tokenizer = build(read(path), str(path), "cpu", None)
        if hash_of(tokenizer) == encoder_sha256:  # type: ignore[arg-type]
            return known.name
    return None


def _snapshots(repository: str) -> list[Path]:
    """Snapshots of a repository in the Hugging Face cache: the one that "main" means first, then the newest."""
    repo = _hub_cache() / f"models--{repository.replace('/', '--')}"
    snapshots = sorted((repo / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime, reverse=True)
    main = repo / "refs" / "main"
    if main.is_file():
        current = repo / "snapshots" / main.read_text().strip()
        return [current, *(s for s in snapshots if s != current)]
    return snapshots


def _hub_cache() -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else user_cache() / "huggingface") / "hub"
