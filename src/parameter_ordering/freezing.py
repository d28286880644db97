r"""Freezing part of the parameters of a model, exactly, for any torch optimizer.

The paper multiplies the update by one minus the indicator of the frozen parameters,

.. math::
    w_t = w_{t-1} + (1 - \alpha(k)) \, \Delta w(g_{S,t}, w_{t-1}, w_{t-2}, \dots). \qquad (2.8)

Masking the gradient alone is not that: momentum and weight decay go on moving what should stand
still. So the gradient is masked and, where the step could still move them, the frozen values are
put back.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer, SparseAdam

from parameter_ordering.frozen.hooks import Freezing, build_parts, freezing_of, unfreeze_one
from parameter_ordering.frozen.masks import by_parameter, fit, set_masks, standing_masks
from parameter_ordering.frozen.wrappers import unwrap

__all__ = ["freeze", "unfreeze"]

Mask = Mapping[str, Tensor] | Mapping[Tensor, Tensor] | Mapping[Parameter, Tensor]

_REFUSED = {
    LBFGS: "its line search judges the loss at values that a freeze would then take back",
    SparseAdam: "it takes sparse gradients, and what is frozen needs a dense one",
}


def freeze(
    optimizer: Optimizer | Sequence[Optimizer],
    mask: Mask | None = None,
    *,
    add: bool = False,
    in_backward: bool | None = None,
) -> None:
    r"""Freeze what ``mask`` marks: from now on no step of ``optimizer`` moves it by one bit.

    What is free moves as if the rest did not exist, under every optimizer that works element by
    element: all of ``torch.optim`` but ``Adafactor`` and ``Muon``. These move what is free as they
    do when the gradient of the rest is zero.

    **Gradients.** After ``backward()``, ``.grad`` is zero where a parameter is frozen, whatever it
    was: inf and NaN do no harm, ``clip_grad_norm_`` does not count it, a ``GradScaler`` does not
    see it, and there is nothing to call for that. A gradient that is assigned by hand is masked
    when the optimizer steps. One that shares its memory is replaced by a masked copy.

    **State.** Adam, AdamW and ``MaskedAdam`` forget the moments of what is frozen. What trains
    again starts from moments of zero, but t, which corrects their bias and is one for each tensor,
    has gone on. Its first update is :math:`(1 - \beta_1) / \sqrt{1 - \beta_2} \cdot
    \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` learning rates long, 3.2 for large t. The state of other
    optimizers goes on by its own rule with a gradient of zero, so that momentum fades and sums
    stay, and what trains again finds it like that.

    **Checkpoints.** ``optimizer.state_dict()`` has a mask for every parameter, as
    ``"frozen_masks"`` of the parameter groups. To resume, call ``freeze(optimizer)`` before
    ``load_state_dict``: the masks of the checkpoint replace those of the optimizer; if it holds
    none, these stay. They go by name where both optimizers know names, so also through
    ``torch.distributed.checkpoint`` and its functions for state dicts, nested and flattened, into
    an optimizer with another order or other groups. (A flattened one that is written to disk has
    them once for each parameter.) Where masks are loaded and nothing holds them, or were dropped by
    torch on their way into an optimizer that had none, the next step is an error; nothing can tell
    where this module has not been imported. Copies and pickles of a frozen optimizer are frozen.

    **Wrappers.** Those of Accelerate and Lightning stand for the optimizer inside. Where an
    optimizer has methods that could write parameters, as schedule-free ones have ``train`` and
    ``eval``, what is frozen is held still while they run; so it is in the step of one that has
    another one inside, as Lookahead: freeze the outermost. A value that is written by anybody else
    counts as set by hand, and is what stays from then on.

    **Many processes.** Masks are the same on every process, and nothing is sent. Parameters may be
    sharded by ``fully_shard``; their masks are whole tensors, or sharded alike. A
    ``ZeroRedundancyOptimizer`` is frozen as others are.

    **Cost.** A tensor with a frozen part takes a byte and one word of its own size more for each
    parameter, and a step one pass over its gradient. Where decay, momentum or the rule itself could
    move what is frozen (all but AdamW, and Adam and ``MaskedAdam`` where they decay nothing or as
    AdamW does), a step also copies the tensor and puts values back. With AdamW's decay it keeps a
    factor for each parameter instead, made anew when the learning rate changes.

    Args:
        optimizer: any optimizer of dense gradients, or several that share out the parameters of
            the mask. Move its model to another device or type before, or call
            ``freeze(optimizer)`` after.
        mask: True = frozen; bool, of the shape of its parameter. By the names that an optimizer
            keeps if built from ``model.named_parameters()``, or by the parameters themselves;
            what ``DistributedDataParallel`` and ``torch.compile`` put before a name does not
            matter. What is not in it trains. It replaces the mask before, and is copied. None
            keeps the masks that the optimizer has, if any. :func:`.mask_of` makes one.
        add: freeze what is frozen already, too.
        in_backward: mask gradients as soon as ``backward()`` has accumulated them, by a hook on
            each parameter. With False the step alone masks them, which saves a pass; clipping and
            a ``GradScaler`` then see what is frozen. ``MaskedAdam(finite_gradients=True)`` then
            masks nothing. None keeps what the optimizer has, True at first.

    Raises:
        TypeError: for ``LBFGS``, ``SparseAdam`` and what is no optimizer, for a mask that is not
            bool, and for that of integers.
        ValueError: for a mask of another shape, also one that stands since before its parameter
            was replaced, for names that the optimizer does not know or knows twice, and for
            compact moments of sharded parameters. Whenever an error is raised, nothing has changed.

    Source: Grabovoy, Bakhteev, Strijov, (2.8), with the update multiplied by 1 - alpha, since alpha
    marks what is frozen.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> optimizer = torch.optim.SGD(model.named_parameters(), lr=0.5, weight_decay=0.5)
    >>> freeze(optimizer, {"weight": torch.tensor([[True, False]])})
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> model.weight.grad, model.weight.data
    (tensor([[0., 1.]]), tensor([[1.0000, 0.2500]]))
    """
    optimizers, around = _optimizers(optimizer)
    for one in optimizers:
        for kind, reason in _REFUSED.items():
            if isinstance(one, kind):
                raise TypeError(f"{kind.__name__} cannot be frozen: {reason}")
    masks: dict[Tensor, Tensor] = {}
    for one in optimizers if mask is None or add else ():
        masks |= {each.p: each.mask for each in standing_masks(one)}
    if mask is not None:
        for masked in fit(optimizers, by_parameter(optimizers, mask)):
            for each in masked:
                stands = masks.get(each.p)
                masks[each.p] = each.mask.clone() if stands is None else stands | each.mask
    plans = []
    for one, masked in zip(optimizers, fit(optimizers, masks), strict=True):
        before = freezing_of(one)
        anew = before.in_backward if before and in_backward is None else in_backward is not False
        plans.append((one, masked, anew, build_parts(one, masked, anew)))
    for (one, masked, anew, parts), writers in zip(plans, around, strict=True):
        freezing = freezing_of(one) or Freezing(one)
        freezing.in_backward = anew
        if mask is not None:
            freezing.thaw(one)
        set_masks(one, masked)
        freezing.install(one, parts)
        for writer in writers:
            freezing.guard(writer, step=True)


def unfreeze(optimizer: Optimizer | Sequence[Optimizer]) -> None:
    """Let everything train again, from the state that :func:`freeze` describes.

    The masks and all hooks on the optimizer and its parameters are gone. Several optimizers, or a
    wrapper, are taken as :func:`freeze` takes them.
    """
    for each in _optimizers(optimizer)[0]:
        unfreeze_one(each)


def _optimizers(
    optimizer: Optimizer | Sequence[Optimizer],
) -> tuple[Sequence[Optimizer], Sequence[list[Optimizer]]]:
    """The optimizers whose steps are hooked, and what may write around each of them."""
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    pairs = [unwrap(each) for each in several]
    return [inner for inner, _ in pairs], [around for _, around in pairs]
