"""Running a module once more as it ran before: random numbers, buffers and attributes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor | None]


def random_state(device: torch.device) -> State:
    """The states of the generators of the CPU and of the device."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(device)


def _set_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)


@contextmanager
def replayed(state: State | None, device: torch.device) -> Iterator[None]:
    """Draws the random numbers that follow ``state`` again, then goes on where it was."""
    now = random_state(device)
    if state is not None:
        _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(now, device)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undoes what modules assign to themselves, as a cached activation or a count of calls."""
    kept = [(vars(module), vars(module).copy()) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.update(before)


def places(module: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
    """All places of the parameters or buffers, those of a module under one of its names only.

    ``functional_call`` loses what was in a place that it is given twice.
    """
    for prefix, each in module.named_modules():
        yield from getattr(each, f"named_{kind}")(prefix, recurse=False, remove_duplicate=False)
