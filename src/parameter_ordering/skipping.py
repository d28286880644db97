"""Not computing the gradient of what is frozen as a whole.

A frozen parameter saves work only where a framework can leave something out, and torch leaves
out whole tensors: a product of the backward pass for every weight, and the whole backward pass
through the layers before the first one that still trains.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from torch import Tensor

from parameter_ordering.frozen.names import Names

__all__ = ["skip_gradients"]


def skip_gradients(
    parameters: Iterable[tuple[str, Tensor]], mask: Mapping[str, Tensor]
) -> ExitStack:
    """Compute no gradient for the tensors that ``mask`` freezes as a whole.

    Their ``requires_grad`` is off and their ``.grad`` is None until the returned stack is closed.
    Every optimizer of torch passes over such parameters: no step, no decay, and their moments and
    step counts wait. This adds speed to :func:`freeze`, it does not replace it: a mask freezes
    single parameters too, and keeps tensors still that get a gradient in another way. Freeze
    first, then skip; close before freezing anew.

    If all that trains is frozen, the last tensor keeps its gradient, so that ``backward()`` stays
    legal for a loss that depends on it; it then costs little more than the forward pass. Buffers,
    such as the running statistics of a batch norm, are no parameters and go on moving. Call it
    before wrapping a model in ``DistributedDataParallel``, which looks at ``requires_grad`` only
    once, and waits for a gradient of all that it has seen.

    Args:
        parameters: pairs of name and parameter, as ``model.named_parameters()``.
        mask: by name, True = frozen, of the shapes of the parameters.

    Returns:
        A context manager whose ``close()`` or exit sets ``requires_grad`` again.

    Raises:
        ValueError: if the mask names what is not among the parameters.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> mask = {"weight": torch.ones(1, 2, dtype=torch.bool)}
    >>> with skip_gradients(model.named_parameters(), mask):
    ...     model(torch.ones(3, 2)).sum().backward()
    >>> model.weight.grad, model.bias.grad
    (None, tensor([3.]))
    >>> model.weight.requires_grad
    True
    """
    named = dict(parameters)
    names = Names(named)
    if unknown := [name for name in mask if names.one(name) is None]:
        raise ValueError(f"the mask names {sorted(unknown)}, which are no parameters")
    frozen = {names.one(name) for name, each in mask.items() if each.all()}
    trainable = [name for name, p in named.items() if p.requires_grad and p.numel()]
    whole = [name for name in trainable if name in frozen]
    skipped = ExitStack()
    for name in whole[:-1] if whole == trainable else whole:
        named[name].requires_grad_(False).grad = None
        skipped.callback(named[name].requires_grad_, True)
    return skipped
