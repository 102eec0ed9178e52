"""The published schedule in PyTorch on a GPU: as one writes it, and with its launches in CUDA graphs.

`torch_loop` of `published_loops.py` asks the GPU for the norm of each step, so the host waits 2000 times. The second
rival keeps norm and step size on the GPU, which is what a careful user of PyTorch would do, and replays the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from published_loops import torch_loop

__all__ = ["ceilings", "float64_schedule", "graph_loop", "make_step", "plain_loop", "timed_torch"]

STEPS, PER_GRAPH = 2000, 50


def plain_loop(X: Any, T: Any, P: Any) -> Callable[[], torch.Tensor]:
    """The published loop in float32; gives W (d, c)."""
    x, t, p = (torch.from_numpy(a).float().cuda() for a in (X, T, P))
    return lambda: torch_loop(x, t, p)


def float64_schedule(X: Any, T: Any, P: Any) -> torch.Tensor:
    """The same in float64: what every answer is held to. X W (n, c), on the CPU."""
    x, t, p = (torch.from_numpy(a).double().cuda() for a in (X, T, P))
    return (x @ torch_loop(x, t, p)).cpu()


def make_step(
    x: torch.Tensor, t: torch.Tensor, p: torch.Tensor
) -> tuple[Callable[[], None], Callable[[], torch.Tensor]]:
    """One published step that asks the GPU for nothing, and what puts its state back to the start; W (d, c)."""
    p = p.clone()
    hard = p.max(dim=1).values > 0.6
    p[hard] = torch.nn.functional.one_hot(p[hard].argmax(dim=1), p.shape[1]).to(p.dtype)
    W = t.clone()
    lr, last = (torch.empty((), dtype=t.dtype, device=t.device) for _ in range(2))

    def reset() -> torch.Tensor:
        W.copy_(t)
        lr.fill_(10.0)
        last.fill_(float("inf"))
        return W

    def step() -> None:
        G = x.T @ (torch.softmax(x @ W / 0.04, dim=1) - p)
        norm = torch.linalg.norm(G)
        lr.copy_(torch.where(norm > last, lr / 2, lr))
        last.copy_(norm)
        W.copy_(torch.nn.functional.normalize(W - lr / (len(x) * 0.04) * G, dim=0))

    return step, reset


def graph_loop(X: Any, T: Any, P: Any) -> Callable[[], torch.Tensor]:
    """The same steps without a host synchronisation, `PER_GRAPH` of them a CUDA graph."""
    step, reset = make_step(*(torch.from_numpy(a).float().cuda() for a in (X, T, P)))
    reset()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up outside the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PER_GRAPH):
            step()

    def run() -> torch.Tensor:
        W = reset()
        for _ in range(STEPS // PER_GRAPH):
            graph.replay()
        return W

    return run


def timed_torch(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds between two events on the GPU, and what came of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    found = work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), found


def ceilings(gibibytes: int = 2, size: int = 8192) -> dict[str, float]:
    """What this GPU does at most, measured now: a copy (bytes read and written), matrix products on random numbers."""
    found = {"copy_bytes_per_s": _copy_rate(gibibytes)}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("float64", torch.float64)):
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        found[f"{name}_flops_per_s"] = 2 * size**3 / _best(lambda a=a, b=b, out=out: torch.matmul(a, b, out=out))
    torch.cuda.empty_cache()
    return found


def _copy_rate(gibibytes: int) -> float:
    source = torch.empty(gibibytes << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of seven, after two that do not count."""
    return min([timed_torch(work)[0] for _ in range(9)][2:]) / 1e3
