"""Estimates, for an H200, of the speeds that the acceptance run would find; nothing runs on a GPU.

    python -m benchmarks.forecast

Operations and bytes of the present code are counted on tensors without values, and divided by the rates at which the
same kinds of kernels worked in the profiles of an earlier version (benchmarks/results/gpu_h200_2026-11-28.md); products
and convolutions at no more than in a sample's ids, 94 % of the peak. A product or a convolution is counted by its
operations, every other kernel by its bytes. For training, operations between two products are taken to be one kernel
that reads each input and writes each output once, as torch.compile aims at. Not counted are the time between kernels,
reading of files, and all other work of the host. Prints the table of docs/results.md.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu.goals import GOALS
from benchmarks.measuring import parser
from titokctl.config import recipe_files
from titokctl.models import transformer
from titokctl.models.fused import AddNorm
from titokctl.models.inception import Inception
from titokctl.models.inference import convert
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.fast_decoder import NormSilu
from titokctl.weights.known import BY_NAME

# Measured on the H200: operations/s of large products, and bytes/s of a copy, each byte read and written.
BF16, TF32, FLOAT32, COPY = 672e12, 356e12, 50.5e12, 4.18e12
# Measured there, in seconds for 64 images: the kinds of kernels in a sample's ids, and in the pixels of ids.
_IDS = {"products": 17e-3, "attention": 7e-3, "norms": 11e-3, "activations": 3e-3}
_PIXELS = {"products": 15e-3, "attention": 3e-3, "norms": 8e-3, "convolutions": 15e-3}
_IMAGES, _FULL_SET = 64, 50_000
_PLAIN_NORMS = 2.0  # the bytes of sum, norm and conversion as kernels of their own, against one kernel
# Bytes a parameter of an optimizer step: the norm reads gradients, scaling reads and writes them, AdamW reads four
# numbers and writes three, the average reads two and writes one.
_OPTIMIZER_BYTES = 4 * (1 + 2 + 7 + 3)
_MASK_BYTES = 2 * 2  # a position and channel of a layer: two dropout masks, written and read


class Work(NamedTuple):
    """Operations in 16 bits (products, convolutions) and in float32 (exact), and bytes of other kernels.

    `attended` are the operations of attention, whose time is that of its bytes.
    """

    products: float = 0.0
    convolutions: float = 0.0
    exact: float = 0.0
    attention: float = 0.0
    norms: float = 0.0
    activations: float = 0.0
    other: float = 0.0
    attended: float = 0.0

    @property
    def operations(self) -> float:
        """All operations that count towards a share of the peak."""
        return self.products + self.convolutions + self.exact + self.attended

    def times(self, factor: float) -> "Work":
        """Return so many times the work."""
        return Work(*(factor * each for each in self))


@dataclass(frozen=True)
class Rates:
    """Operations/s and bytes/s of the kinds of work."""

    products: float
    convolutions: float
    attention: float
    norms: float
    other: float  # activations, too

    def seconds(self, work: Work) -> float:
        """Return the seconds of `work`, kernel after kernel."""
        exact = self.products * FLOAT32 / BF16
        rates = (self.products, self.convolutions, exact, self.attention, self.norms, self.other, self.other)
        return sum(amount / rate for amount, rate in zip(work[: len(rates)], rates, strict=True))


class _Counter(TorchDispatchMode):
    """Counts the work of every operation; inside modules that are one kernel on a GPU only their inputs and outputs."""

    _FREE = frozenset({"_unsafe_view", "detach", "empty", "empty_like", "new_empty", "lift_fresh"})

    def __init__(self) -> None:
        super().__init__()
        self.found, self._inside = dict.fromkeys(Work._fields, 0.0), 0

    def enters(self, module: nn.Module, inputs: Any) -> None:
        self._inside += isinstance(module, AddNorm | NormSilu)

    def leaves(self, module: nn.Module, inputs: Any, out: Any) -> None:
        if not isinstance(module, AddNorm | NormSilu):
            return
        self._inside -= 1
        is_group = isinstance(module, NormSilu)
        read, written = _bytes(inputs) * (2 if is_group else 1), _bytes(out)
        if not is_group and inputs[1] is None:
            written -= _bytes(inputs[0])  # the residual stream stays as it is
        self.found["other" if is_group else "norms"] += read + written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":  # a question, such as for the device
            return func(*args, **(kwargs or {}))
        if func._overloadpacket not in flop_registry:  # in inference mode, also operations made of others come here
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if self._inside or func.is_view or name in self._FREE:
            return out
        if "scaled_dot_product" in name:
            self.found["attention"] += _bytes(args) + _bytes(tree_leaves(out)[0])
            q, k = args[:2]
            self.found["attended"] += 4 * q.numel() * k.shape[2]
        elif func._overloadpacket in flop_registry:
            operations = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            is_exact = next(t for t in tree_leaves(args) if isinstance(t, torch.Tensor)).dtype == torch.float32
            kind = "exact" if is_exact else "convolutions" if "convolution" in name else "products"
            self.found[kind] += operations
        else:
            self.found["activations" if name == "gelu" else "other"] += _bytes(args) + _bytes(out)
        return out


@contextmanager
def _attending_as_on_a_gpu() -> Iterator[None]:
    """Let networks on a CPU attend as on a GPU: in one operation, not in products of their own."""

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float = 0.0, is_causal: bool = False
    ) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)

    before, transformer.attend = transformer.attend, attend
    try:
        yield
    finally:
        transformer.attend = before


def _bytes(tensors: Any) -> int:
    return sum(t.nbytes for t in tree_leaves(tensors) if isinstance(t, torch.Tensor))


def work_of(run: Callable[[], object], images: int) -> Work:
    """Return the work of `run` for each of its images; `run` is called with a counter of this module around it."""
    counter = _Counter()
    hooks = [register_module_forward_pre_hook(counter.enters), register_module_forward_hook(counter.leaves)]
    try:
        with torch.no_grad(), counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return Work(**counter.found).times(1 / images)


def _work_of_graph(graph: torch.fx.Graph) -> Work:
    """Return the work of a traced step, in which all operations between two products are one kernel.

    The stage of an operation is the largest number of products and attentions on a way to it. Operations of one stage
    are one kernel: it reads each tensor of other stages once, and writes what other stages read. Views and conversions
    cost nothing: whoever reads them reads their source, if that is smaller.
    """
    found = dict.fromkeys(Work._fields, 0.0)
    stage: dict[torch.fx.Node, int] = {}
    source: dict[torch.fx.Node, torch.fx.Node] = {}  # of views and conversions
    touched: dict[int, set[torch.fx.Node]] = {}  # by stage: tensors that are read
    written: set[torch.fx.Node] = set()
    hard: set[torch.fx.Node] = set()

    def read(node: torch.fx.Node, by: int | None) -> None:
        """Note that the kernel of a stage, or with None a product, reads `node`."""
        node = source.get(node, node)
        if node.op == "placeholder" or node in hard:
            if by is not None:
                touched.setdefault(by, set()).add(node)
        elif by != stage[node]:
            written.add(node)
            if by is not None:
                touched.setdefault(by, set()).add(node)

    for node in graph.nodes:
        inputs = [source.get(each, each) for each in node.all_input_nodes]
        stage[node] = max((stage[each] + (each in hard) for each in inputs), default=0)
        if node.op != "call_function":
            continue
        packet, name = getattr(node.target, "_overloadpacket", None), getattr(node.target, "__name__", "")
        is_view = name == "getitem" or getattr(node.target, "is_view", False) or "_unsafe_view" in name
        if is_view or ("_to_copy" in name and _size(node) >= _size(inputs[0])):
            source[node] = inputs[0]
        elif "scaled_dot_product" in str(packet):
            hard.add(node)
            found["attention"] += sum(map(_size, inputs)) + _size(node)
            for each in inputs:
                read(each, None)
        elif packet in flop_registry:
            hard.add(node)
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
            found["products"] += flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])
            for each in inputs:
                read(each, None)
        else:
            for each in inputs:
                read(each, stage[node])
            if "sum" in name and _size(inputs[0]) > 16 * _size(node):
                found["norms"] += _size(inputs[0])  # over rows, for a bias: a kernel of its own
    found["norms"] += sum(_size(node) for nodes in touched.values() for node in nodes) + sum(map(_size, written))
    return Work(**found)


def _size(node: torch.fx.Node) -> int:
    return _bytes(node.meta.get("val"))


class Forecast:
    """Estimates for L-32's tokenizer and generator, for S-128's generator, and for Inception."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def _ready(self, module: nn.Module, dtype: torch.dtype) -> Any:
        """Return `module` with the layers that a GPU runs."""
        convert(module.eval(), dtype, on_cpu=False)
        return module

    @cached_property
    def encoding(self) -> Work:
        """Work of one image to ids, in fp16."""
        with self._fake:
            model = self._ready(TiTok(BY_NAME["titok-l-32"].config), torch.float16)  # type: ignore[arg-type]
            images = torch.empty(128, 3, 256, 256)
            return work_of(lambda: model.tokenize_unchecked(images), len(images))

    @cached_property
    def decoding(self) -> Work:
        """Work of the ids of one image to pixels, in bf16."""
        with self._fake:
            model = self._ready(TiTok(BY_NAME["titok-l-32"].config), torch.bfloat16)  # type: ignore[arg-type]
            ids = torch.zeros(_IMAGES, 32, dtype=torch.int64)
            return work_of(lambda: model.detokenize_unchecked(ids), len(ids))

    @cached_property
    def drawing(self) -> Work:
        """Work of the ids of one sample, in bf16."""
        settings = recipe_files.load("titok-l-32", "sampling")
        with self._fake:
            model = self._ready(MaskGit(BY_NAME["maskgit-vit-l-32"].config), torch.bfloat16)  # type: ignore[arg-type]
            index = torch.arange(_IMAGES)
            return work_of(lambda: model.sample(index, settings, KeyedNoise(0, index)), len(index))

    @cached_property
    def features(self) -> Work:
        """Work of Inception for one image."""
        with self._fake:
            network = Inception().eval()
            images = torch.empty(64, 3, 256, 256)
            return work_of(lambda: network(images), len(images))

    def training(self, name: str, micro: int) -> Work:
        """Work of a training step for one image, but for the optimizer's: that of some layers, extended to all."""
        config: Any = BY_NAME[name].config
        few, more = (
            self._step_of(config.model_copy(update={"num_layers": n, "dropout": 0.0, "attention_dropout": 0.0}), micro)
            for n in (2, 4)
        )
        layers = Work(*((b - a) * (config.num_layers - 2) / 2 for a, b in zip(few, more, strict=True)))
        masks = _MASK_BYTES * config.num_layers * config.width * (config.num_latent_tokens + 1)
        total = Work(*(a + b for a, b in zip(few, layers, strict=True)))
        return total._replace(norms=total.norms + masks * (config.dropout > 0))

    def _step_of(self, config: Any, micro: int) -> Work:
        with self._fake, _attending_as_on_a_gpu():
            model = MaskGit(config).train()
            for part in model.modules():
                if hasattr(part, "stream_dtype"):
                    part.stream_dtype = torch.bfloat16  # type: ignore[assignment]
            ids = torch.zeros(micro, config.num_latent_tokens, dtype=torch.int64)
            names, parameters = zip(*model.named_parameters(), strict=True)

            def step(parameters: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
                with precision("bf16", "cpu"):
                    logits = functional_call(model, dict(zip(names, parameters, strict=True)), (ids, ids[:, 0]))
                loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), label_smoothing=0.1, reduction="sum")
                return torch.autograd.grad(loss, tuple(parameters), allow_unused=True)

            graph = make_fx(step, tracing_mode="fake")(parameters)
        return _work_of_graph(graph.graph).times(1 / micro)

    @cached_property
    def short(self) -> Rates:
        """Rates of sequences of 33 positions, from the profile of a sample's ids."""
        work = self.drawing.times(_IMAGES)
        products = work.products / _IDS["products"]
        return Rates(
            products, products, work.attention / _IDS["attention"],
            _PLAIN_NORMS * work.norms / _IDS["norms"], work.activations / _IDS["activations"],
        )  # fmt: skip

    @cached_property
    def long(self) -> Rates:
        """Rates of sequences of 289 positions and of convolutions, from the profile of pixels."""
        work, short = self.decoding.times(_IMAGES), self.short
        return Rates(
            min(short.products, work.products / _PIXELS["products"]),
            min(short.products, work.convolutions / _PIXELS["convolutions"]),
            work.attention / _PIXELS["attention"], _PLAIN_NORMS * work.norms / _PIXELS["norms"], short.other,
        )  # fmt: skip

    def _training_rates(self, config: Any) -> Rates:
        """Rates of a generator's training.

        Nobody has measured the kernel that attends over few positions while training: like the kernels of norms it
        moves each byte once, and is taken to be as fast. Torch's kernels are taken to be as fast as in a profile.
        """
        is_short = config.num_latent_tokens + 1 <= transformer.LONGEST_SHORT
        return replace(self.short, attention=self.short.norms) if is_short else self.short

    def estimates(self, with_training: bool) -> dict[str, float]:
        """Return the estimate of each goal of the acceptance run that can be counted, by the name of its speed."""
        drawn, decoded = self.short.seconds(self.drawing), self.long.seconds(self.decoding)
        found = {
            "encode titok-l-32 fp16": self.encoding.operations / self.long.seconds(self.encoding) / BF16,
            "50,000 images by proportion": _FULL_SET * (drawn + decoded),
            "Inception, float32": _FULL_SET * self.long.seconds(self.features),
            "Inception, tf32": _FULL_SET
            * self.long.seconds(self.features._replace(exact=self.features.exact * FLOAT32 / TF32)),
        }
        for name in ("maskgit-vit-l-32", "maskgit-uvit-s-128") if with_training else ():
            recipe: Any = recipe_files.load(name, "generator")
            with torch.device("meta"):
                model = MaskGit(recipe.model)
            step = self.training(name, recipe.training.micro_batch_size)
            parameters = sum(p.numel() for p in model.parameters())
            step = step._replace(other=_OPTIMIZER_BYTES * parameters / recipe.training.global_batch_size)
            found[f"train {name}"] = model.operations() / self._training_rates(recipe.model).seconds(step) / BF16
        return found


def main() -> None:
    """Print the table of the goals."""
    given = parser(__doc__).parse_args()
    found = Forecast().estimates(with_training=not given.quick)
    print("| goal | wanted | estimate |\n|---|---|---|")
    for goal in GOALS:
        value = found.get(goal.speed) if goal.number in ("of_peak", "seconds", "full_set_s") else None
        sign, shown = (
            "at least" if goal.is_least else "at most",
            "not counted" if value is None else goal.in_words(value),
        )
        print(f"| {goal.name} | {sign} {goal.in_words(goal.wanted)} | {shown} |")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
