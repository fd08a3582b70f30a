"""Networks: nn.Modules and pure tensor functions; no paths, no ranks."""

import torch


def _call_vector_functions() -> None:
    """Call each function of MKL's vector library once, with one thread.

    MKL sets them up in their first call. When that call is one of several threads, the numbers of one thread can come
    out with about 12 right bits, in this call alone (docs/experiments.md): then ids, pixels and samples of one run in
    some hundreds would differ from those of the next.
    """
    functions = (torch.exp, torch.expm1, torch.log, torch.log1p, torch.sin, torch.cos, torch.tanh, torch.erf)
    for dtype in (torch.float32, torch.float64):
        few = torch.full((16,), 0.5, dtype=dtype, device="cpu")
        for function in functions:
            function(few)


_call_vector_functions()
