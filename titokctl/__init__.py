"""titokctl: a toolkit for TiTok, which represents an image by 32 tokens. Importing this package does not import torch.

The public names below are loaded on first use (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "TrainGenerator": "titokctl.jobs.train.generator",
    "TrainTokenizer": "titokctl.jobs.train.tokenizer",
    "Context": "titokctl.context",
    "Tokenize": "titokctl.jobs.tokenize.request",
    "Sample": "titokctl.jobs.sample.request",
    "Fid": "titokctl.jobs.evaluate.fid",
    "FeatureNetwork": "titokctl.evaluation.extractors",
    "load_tokenizer": "titokctl.weights.load",
    "load_generator": "titokctl.weights.load",
    "TiTok": "titokctl.models.titok.tokenizer",
    "MaskGit": "titokctl.models.maskgit.generator",
    "TokenizerConfig": "titokctl.config.models",
    "GeneratorConfig": "titokctl.config.models",
    "SamplingConfig": "titokctl.config.sampling",
    "sample_ids": "titokctl.sampling.decoding",
    "open_images": "titokctl.data.image_arrays",
    "save_images": "titokctl.data.image_arrays",
    "open_source": "titokctl.data.sources.opening",
    "tokenize_unit": "titokctl.jobs.tokenize.encode",
    "UnitSettings": "titokctl.jobs.tokenize.encode",
    "TokenCache": "titokctl.formats.token_cache",
    "UserError": "titokctl.errors",
}

__all__ = [
    "Context",
    "FeatureNetwork",
    "Fid",
    "GeneratorConfig",
    "MaskGit",
    "Sample",
    "SamplingConfig",
    "TiTok",
    "TokenCache",
    "Tokenize",
    "TokenizerConfig",
    "TrainGenerator",
    "TrainTokenizer",
    "UnitSettings",
    "UserError",
    "__version__",
    "load_generator",
    "load_tokenizer",
    "open_images",
    "open_source",
    "sample_ids",
    "save_images",
    "tokenize_unit",
]

if TYPE_CHECKING:
    from titokctl.config.models import GeneratorConfig, TokenizerConfig
    from titokctl.config.sampling import SamplingConfig
    from titokctl.context import Context
    from titokctl.data.image_arrays import open_images, save_images
    from titokctl.data.sources.opening import open_source
    from titokctl.errors import UserError
    from titokctl.evaluation.extractors import FeatureNetwork
    from titokctl.formats.token_cache import TokenCache
    from titokctl.jobs.evaluate.fid import Fid
    from titokctl.jobs.sample.request import Sample
    from titokctl.jobs.tokenize.encode import UnitSettings, tokenize_unit
    from titokctl.jobs.tokenize.request import Tokenize
    from titokctl.jobs.train.generator import TrainGenerator
    from titokctl.jobs.train.tokenizer import TrainTokenizer
    from titokctl.models.maskgit.generator import MaskGit
    from titokctl.models.titok.tokenizer import TiTok
    from titokctl.sampling.decoding import sample_ids
    from titokctl.weights.load import load_generator, load_tokenizer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'titokctl' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
