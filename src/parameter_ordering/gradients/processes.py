"""Processes that train one model together, under DistributedDataParallel."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def in_data_parallel() -> bool:
    """Whether the forward pass that goes on is one of several."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None) is not None


def mean_over_processes(parts: Iterable[Tensor], seen: object) -> list[Tensor]:
    """Copies of tensors as their mean over all processes, the same bits in each.

    Raises:
        RuntimeError: the processes have not seen the same.
    """
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, seen)
    if len(set(everywhere)) > 1:
        raise RuntimeError(
            "the processes had minibatches of different sizes, or not the same number of steps: "
            f"{everywhere}; drop the last, smaller minibatch (drop_last=True)"
        )
    return _means(parts)


def exchanged(g: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean gradients of parameters that a freeze masks before the processes exchange them.

    Args:
        g: those of this process, not masked; one that is missing is zero.
        parameters: all, by name.
    """
    own = {
        name: g.get(name, torch.zeros_like(w))
        for name, w in parameters.items()
        if w._post_accumulate_grad_hooks
    }
    return dict(zip(own, _means(own.values()), strict=True))


def _means(parts: Iterable[Tensor]) -> list[Tensor]:
    means = [part / dist.get_world_size() for part in parts]
    for mean in means:
        dist.all_reduce(mean)
    return means
