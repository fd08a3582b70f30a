"""Settings of a training run that do not depend on what is trained."""

from typing import Literal

from pydantic import model_validator

from titokctl.config.base import (
    Config,
    DecayPair,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

LogName = Literal["tensorboard", "wandb", "trackio"]


class OptimizerConfig(Config):
    """AdamW. `clip_norm` null leaves gradients as they are.

    With `muon_learning_rate` the matrices inside transformer blocks and the kernels of a VQGAN's residual blocks are
    updated by Muon instead, which needs far fewer steps for small models; the published recipes leave it null.
    """

    learning_rate: PositiveFloat
    betas: DecayPair = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = 1.0
    muon_learning_rate: PositiveFloat | None = None
    muon_momentum: Fraction = 0.95


class ScheduleConfig(Config):
    """The learning rate over steps: linear from 0 over `warmup_steps`, then `kind` towards `end_fraction` of it.

    "warmup-stable-decay" stays at the full rate until `decay_steps` before the end and falls linearly from there
    (arXiv 2404.06395). It and "constant" don't depend on the length until then, so such a run may be made longer;
    it goes on from its newest checkpoint, after a decay at the full rate again.
    """

    kind: Literal["cosine", "constant", "warmup-stable-decay"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    end_fraction: Fraction = 0.1
    decay_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _decay_belongs_to_one_kind(self) -> "ScheduleConfig":
        if (self.kind == "warmup-stable-decay") != (self.decay_steps > 0):
            needed = "at least 1" if self.kind == "warmup-stable-decay" else "0"
            raise ValueError(f"decay_steps is {self.decay_steps}, and a {self.kind} schedule needs {needed}")
        return self


class TrainingConfig(Config):
    """Length, batch, precision, and how often things are saved and shown.

    `global_batch_size` is the number of images an optimizer step sees over all processes and accumulation steps;
    `micro_batch_size` bounds what one process holds at once (null: all of its share). Of the checkpoints the newest
    `keep_checkpoints` stay, and those whose step is a multiple of `keep_every`. `log` names further destinations of the
    metrics: tensorboard, wandb, trackio.

    `keep_best` is the name of a held-out number, such as val_psnr or held_out_loss: the checkpoint with the best one
    stays, and the product is made from it instead of from the last step. Losses, distances, entropies and the gap are
    better when lower, other numbers when higher. `stop_after` ends the run after so many evaluations in a row without
    a better one.

    `freeze` names parts of the network that are not trained, such as encoder, or decoder.blocks.

    `precision` bf16 is for GPUs that multiply it fast (since the A100); fp16, with a loss scale that adapts itself, is
    for older ones (V100, T4) and needs a few skipped steps at first. With either one, the residual stream of a MaskGIT
    or an autoregressive generator has 16 bits on a GPU; weights, norms, losses and optimizers are float32.

    `compile` null means torch.compile on a GPU and none on a CPU, where starting takes longer than it saves.
    On a GPU some sums are made in an order that changes from run to run, so that a resumed run equals an uninterrupted
    one but for rounding. `deterministic` takes kernels without such sums where there are some, and raises an error
    where there are none; steps take longer. On a CPU training is reproducible to the bit in any case.
    `activation_checkpointing` computes the transformer blocks a second time in the backward pass instead of keeping
    their activations: a third more work for a fraction of the memory.
    """

    steps: PositiveInt
    freeze: tuple[str, ...] = ()
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    ema_decay: Fraction = 0.999
    seed: int = 0
    log_every: PositiveInt = 50
    evaluate_every: PositiveInt = 1000
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 2
    keep_every: PositiveInt | None = None
    keep_best: str | None = None
    stop_after: PositiveInt | None = None
    log: tuple[LogName, ...] = ()
    compile: bool | None = None
    deterministic: bool = False
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainingConfig":
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            whole, part = self.global_batch_size, self.micro_batch_size
            raise ValueError(f"global_batch_size {whole} is not a multiple of micro_batch_size {part}")
        if self.keep_every and self.keep_every % self.checkpoint_every:
            every, saved = self.keep_every, self.checkpoint_every
            raise ValueError(f"keep_every {every} is not a multiple of checkpoint_every {saved}")
        if self.stop_after and self.keep_best is None:
            raise ValueError(
                f"stop_after {self.stop_after} needs keep_best, the name of the number that has to improve"
            )
        return self
