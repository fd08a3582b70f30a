"""The four stages at sizes that train in seconds, for tests: recipes, and train-tokenizer as a function."""

from collections.abc import Callable
from pathlib import Path

from remarks import Remarks

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.jobs.train.tokenizer import TrainedTokenizer, TrainTokenizer

_VQGAN = "{channels: 8, channel_multipliers: [1, 1, 2, 2], num_res_blocks: 1, codebook_size: 32, token_size: 8}"
_ADVERSARY = """
adversary:
  start: 6
  weight: 0.1
  channels: 32
  optimizer: {learning_rate: 1e-4}
  schedule: {kind: constant, warmup_steps: 2}
"""
_REST = """
optimizer: {learning_rate: 1e-3}
schedule: {kind: constant, warmup_steps: 4}
training: {steps: 20, global_batch_size: 8, ema_decay: 0.9, log_every: 1, evaluate_every: 1000, checkpoint_every: 5}
"""


def _model(head: str) -> str:
    return f"""
model:
  image_size: 32
  num_latent_tokens: 8
  encoder: {{patch_size: 8, width: 32, num_layers: 1, num_heads: 2}}
  decoder: {{patch_size: 8, width: 32, num_layers: 1, num_heads: 2}}
  codebook_size: 32
  token_size: 4
{head}
"""


_PROXY_HEAD = f"  head: proxy\n  proxy: {_VQGAN}\n  pixel_decoder: "
_CARE = "codebook: {reseed_decay: 0.99, continuous_steps: 3}\n"
_GAUSSIAN = _model("  quantizer: gaussian").replace("codebook_size: 32", "codebook_size: null")
TEXTS = {
    "single": f"stage: single\ninitialization: fan-in\n{_model('')}{_CARE}{_ADVERSARY}",
    "gaussian": f"stage: single\ninitialization: fan-in\n{_GAUSSIAN}{_ADVERSARY}",
    "vqgan": f"stage: vqgan\nimage_size: 32\nmodel: {_VQGAN}\n{_CARE}{_ADVERSARY}",
    "proxy": f"stage: proxy\ninitialization: fan-in\n{_model(_PROXY_HEAD + 'false')}{_CARE}",
    "decoder": f"stage: decoder\n{_model(_PROXY_HEAD + 'true')}{_ADVERSARY}",
}
NAMES = tuple(TEXTS)
# A recipe of stage single but for its optimizer, schedule and training.
ALONE = f"""
kind: tokenizer
stage: single
initialization: fan-in
{_model("")}
codebook: {{reseed_decay: 0.99, continuous_steps: 5}}
"""


def write_recipe(folder: Path, stage: str) -> Path:
    """The recipe of `stage` as a file in `folder`."""
    path = folder / f"small-{stage}.yaml"
    path.write_text(f"kind: tokenizer\n{TEXTS[stage]}{_REST}")
    return path


class Leave(Remarks):
    """Progress that ends a run after a number of steps: by `leave`, at most once; and keeps what was said."""

    def __init__(self, after: int | None = None, leave: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._after, self._leave = after, leave

    def advance(self, count: int = 1, note: str = "") -> None:
        if self._after is not None and count:  # not for a note within a step
            self._after -= 1
            if self._after == 0:
                self._leave()


def train(data: Path, stage: str, runs: Path, folder: Path, *overrides: str, **options) -> TrainedTokenizer:
    """train-tokenizer in this process with the small recipe of `stage`."""
    with StopRequest() as stop:
        around = {"progress": Leave(), "stop": stop}
        around |= {name: options.pop(name) for name in ("progress", "stop", "group") if name in options}
        request = TrainTokenizer([data], str(write_recipe(folder, stage)), overrides, **options)
        return request.run(Context(runs, **around))
