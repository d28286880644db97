"""What is said of a backward pass that gives no shares."""

from collections.abc import Sequence

from torch import nn

from parameter_ordering.gradients.recorder import Pass


class Fault(Exception):
    """Why a backward pass gives no shares."""


def only(passes: Sequence[Pass], axis: int, model: nn.Module) -> Pass:
    """The one forward pass that a backward pass has gone through."""
    for within in passes:
        for layer, why in within.faults.items():
            if within.root is None:
                raise Fault(f"{name_of(model, layer)}: {why}")
    if len(passes) != 1:
        raise Fault(
            f"{len(passes)} calls of the model for one backward pass: which rows are of the same "
            "sample is not known; call backward() after each, or give all samples at once"
        )
    if passes[0].moving and passes[0].blind:
        raise Fault(
            "the model may move samples from row to row, and a reentrant checkpoint keeps from "
            "seeing whether it does: call checkpoint(..., use_reentrant=False)"
        )
    if passes[0].S is None:
        raise Fault(f"no input of the model has an axis {axis} of samples")
    return passes[0]


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """A layer as its user knows it."""
    name = next((name for name, module in model.named_modules() if module is layer), "")
    return f"{name or 'the model'} ({type(layer).__name__})"


def unreached(names: list[str], why: str) -> str:
    """What to say of parameters whose shares do not add up."""
    return (
        f"the shares of the samples do not add up to the gradient of {names}: the loss uses these "
        "parameters itself, or something couples the samples, or a layer works on them in a way "
        "that its hooks do not see; change that, or leave them out (parameters=...)"
        + (f" ({why})" if why else "")
    )
