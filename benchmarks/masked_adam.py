"""What freezing adds to a step of Adam, and where compact moments pay: time and bytes against k/p.

All ways step on the same shapes with torch's fused Adam, a random mask and gradients that are
there already. The first is Adam with nothing frozen, the second what one writes by hand:
``masked_fill_`` the gradient, step, put the frozen values back with ``where``. AdamW decays
ahead of its step; its second row makes the factors anew each time, as for a rate that changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from benchmarks.rounds import interleaved
from parameter_ordering.freezing import freeze
from parameter_ordering.masked_adam import MaskedAdam

SHAPES = [(2048, 784), (2048,), (2048, 2048), (2048,), (10, 2048), (10,)]
SHARES = (0.0, 0.5, 0.9, 0.99)


def run(quick: bool = False) -> list[dict]:
    """Rows of one way and share k/p: median milliseconds, ratio to Adam, bytes a parameter."""
    shapes = [(64, 32), (64,)] if quick else SHAPES
    return [row for share in SHARES for row in measure(shapes, share, seconds=0 if quick else 20)]


def measure(shapes: list[tuple], share: float, seconds: float) -> list[dict]:
    torch.manual_seed(0)
    masks = [torch.rand(shape) < share for shape in shapes]
    p = sum(mask.numel() for mask in masks)
    ways = {
        "Adam, nothing frozen": _adam(masks),
        "masked_fill_ and where": _by_hand(masks),
        "MaskedAdam": _masked_adam(masks),
        "MaskedAdam, finite_gradients": _masked_adam(masks, finite_gradients=True),
        "MaskedAdam, weight_decay": _masked_adam(masks, weight_decay=0.01),
        "AdamW, weight_decay": _frozen(AdamW, masks, weight_decay=0.01),
        "AdamW, weight_decay, a new rate": _new_rates(masks),
        "MaskedAdam, compact": _masked_adam(masks, compact=True),
    }
    medians = interleaved({name: step for name, (step, _) in ways.items()}, seconds)
    return [
        {
            "k/p": share,
            "way": name,
            "milliseconds": medians[name] * 1e3,
            "ratio to Adam": medians[name] / medians["Adam, nothing frozen"],
            "bytes a parameter": _bytes(held()) / p,
        }
        for name, (_, held) in ways.items()
    ]


Way = tuple[Callable[[], None], Callable[[], list[Tensor]]]


def _parameters(masks: list[Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(mask.shape)) for mask in masks]
    for w in params:
        w.grad = torch.randn_like(w)
    return params


def _adam(masks: list[Tensor]) -> Way:
    optimizer = Adam(_parameters(masks), fused=True)
    return optimizer.step, lambda: _tensors(optimizer.state)


def _by_hand(masks: list[Tensor]) -> Way:
    params = _parameters(masks)
    optimizer = Adam(params, fused=True)
    saved = [w.detach().clone() for w in params]

    @torch.no_grad()
    def step() -> None:
        for w, mask in zip(params, masks, strict=True):
            w.grad.masked_fill_(mask, 0)
        optimizer.step()
        for w, mask, value in zip(params, masks, saved, strict=True):
            w.copy_(torch.where(mask, value, w))

    return step, lambda: _tensors([optimizer.state, masks, saved])


def _masked_adam(masks: list[Tensor], **options: float) -> Way:
    return _frozen(MaskedAdam, masks, **options)


def _new_rates(masks: list[Tensor]) -> Way:
    step, held = _frozen(AdamW, masks, weight_decay=0.01)
    [group] = step.__self__.param_groups

    def step_at_a_new_rate() -> None:
        group["lr"] *= 0.999
        step()

    return step_at_a_new_rate, held


def _frozen(kind: type[Adam], masks: list[Tensor], **options: float) -> Way:
    params = _parameters(masks)
    optimizer = kind(params, fused=True, **options)
    freeze(optimizer, dict(zip(params, masks, strict=True)), in_backward=False)
    return optimizer.step, lambda: _tensors(
        [
            optimizer.state,
            [group["frozen_masks"] for group in optimizer.param_groups],
            [vars(part) for part in optimizer._freezing.parts.values()],
        ]
    )


def _tensors(held: object) -> list[Tensor]:
    """All tensors in nested lists and tuples and the values of dictionaries."""
    if isinstance(held, Tensor):
        return [held]
    values = held.values() if isinstance(held, dict) else held
    if not isinstance(held, dict | list | tuple):
        return []
    return [x for value in values for x in _tensors(value)]


def _bytes(tensors: list[Tensor]) -> int:
    """Storage that is held twice counts once; the scalar ``step`` of a tensor counts too."""
    return sum({x.untyped_storage().data_ptr(): x.nbytes for x in tensors}.values())
