"""`titokctl weights`: the released models, and where they are on this machine."""

from dataclasses import dataclass
from pathlib import Path

from titokctl.context import Context
from titokctl.weights.known import BY_NAME
from titokctl.weights.local import cache_folder, where


@dataclass(frozen=True)
class ListedModel:
    """A released model with its published numbers; `path` is None if it isn't on this machine."""

    name: str
    kind: str
    parameters_millions: float
    num_latent_tokens: int | None
    rfid_quoted: float | None
    gfid_quoted: float | None
    gfid_sampling_steps: int | None
    repository: str
    files: list[str]
    path: Path | None


@dataclass(frozen=True)
class ListedModels:
    """All released models, and the folder that downloads are kept in."""

    cache_folder: Path
    models: list[ListedModel]


@dataclass(frozen=True)
class ListModels:
    """List the released models."""

    def run(self, context: Context) -> ListedModels:
        """Return the list; nothing is downloaded."""
        models = [
            ListedModel(
                name=known.name,
                kind=known.kind,
                parameters_millions=known.parameters,
                num_latent_tokens=known.num_latent_tokens,
                rfid_quoted=known.rfid,
                gfid_quoted=known.gfid,
                gfid_sampling_steps=known.sampling_steps,
                repository=known.repository,
                files=list(known.files),
                path=where(known),
            )
            for known in BY_NAME.values()
        ]
        return ListedModels(cache_folder(), models)
