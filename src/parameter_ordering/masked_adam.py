"""Adam that trains what is not frozen and, if asked to, remembers no more than that."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.optimizer import ParamsT

from parameter_ordering.freezing import freeze
from parameter_ordering.frozen.hooks import STILL, freezing_of
from parameter_ordering.frozen.parts import FreeCoordinates

__all__ = ["MaskedAdam"]


class MaskedAdam(Adam):
    r"""torch's own Adam, made for :func:`freeze`.

    While nothing is frozen it is :class:`torch.optim.Adam`, bit by bit and option by option. A
    freeze costs it one pass over the gradients, if there is no weight decay: zero gradient and zero
    moments keep a value still. A checkpoint with masks freezes it without a call of :func:`freeze`.

    With ``finite_gradients=True`` a freeze costs nothing: the second moment of what is frozen is
    infinite, so that its step is zero whatever its gradient, as long as that is finite. The
    gradients are not masked then; do ``freeze(optimizer, mask, in_backward=False)``.

    With ``compact=True`` the two moments of a tensor (three with ``amsgrad``) exist for its free
    coordinates alone. A step gathers these and their gradients, is torch's own step on them, and
    scatters the values back. Bytes for each parameter in float32, r being the share of free ones:

    ======================== ======== ================ ============
    \                        neither  finite_gradients compact
    ======================== ======== ================ ============
    moments                  8        8                8 r
    mask                     1        1                1
    mask of bits, or index   4        0                4 r
    in all, at r = 0.5       13       9                7
    at r = 0.1               13       9                2.2
    at r = 0.01              13       9                1.12
    ======================== ======== ================ ============

    A compact step takes 8 r more for as long as it lasts; tensors of more than 2^31 elements have
    an index of 8 r. On a CPU compact steps are faster than masked ones where no more than a few
    percent of the parameters are free, and slower where more are (``benchmarks/masked_adam.py``).

    Args:
        params: best ``model.named_parameters()``, so that masks go by name.
        lr, betas, eps, weight_decay, amsgrad, options: as in :class:`torch.optim.Adam`.
        compact: keep moments of free coordinates only. Like every option it may differ between
            groups, and a checkpoint of ``MaskedAdam`` brings its own.
        finite_gradients: a promise that no gradient is ever inf or NaN; one that is spoils the
            frozen value that it belongs to. Where gradients are masked in the backward pass, with
            ``compact`` or with ``differentiable`` it changes nothing.

    Raises:
        ValueError: for ``compact`` with ``differentiable``, and for ``finite_gradients`` with a
            second moment that forgets all at once, ``betas[1] = 0``.
        RuntimeError: from a compact step inside :func:`torch.compile`.

    Source: Kingma, Ba, Adam: a method for stochastic optimization, ICLR 2015; masked as in
    Grabovoy, Bakhteev, Strijov, (2.8).

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> optimizer = MaskedAdam(model.named_parameters(), lr=0.1, compact=True)
    >>> freeze(optimizer, {"weight": torch.tensor([[True, False, True]])})
    >>> before = model.weight.detach().clone()
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step()
    >>> model.weight.data != before
    tensor([[False,  True, False]])
    >>> optimizer.state[model.weight]["exp_avg"].shape
    torch.Size([1])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        compact: bool = False,
        finite_gradients: bool = False,
        **options: Any,
    ):
        if compact and options.get("differentiable"):
            raise ValueError("a compact step is not differentiable: choose one of the two")
        if finite_gradients and betas[1] == 0:
            raise ValueError("finite_gradients=True freezes by the second moment: betas[1] is 0")
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        self.defaults |= {"compact": compact, "finite_gradients": finite_gradients}
        self._complete_groups()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of Adam, masked or not; its masks freeze."""
        if freezing_of(self) is None:
            freeze(self)
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._complete_groups()

    def _complete_groups(self) -> None:
        for group in self.param_groups:
            for option in ("compact", "finite_gradients"):
                group.setdefault(option, self.defaults[option])

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Tell torch's step what to work on: where moments are compact, the free coordinates."""
        freezing = freezing_of(self)
        parts = freezing.parts if freezing else {}
        if not group["compact"] or not parts:
            new = [p for p in group["params"] if p in parts and not self.state.get(p)]
            has_complex = self._init_of_adam(group, *lists)
            for p in new:  # what torch makes moments of only now
                parts[p].forget(p, self.state.get(p, {}))
            return has_complex
        if torch.compiler.is_compiling():
            raise RuntimeError("a compact step cannot be compiled: keep it out of torch.compile")
        stand_ins = {
            p: part.stand_in(p)
            for p in group["params"]
            if isinstance(part := parts.get(p), FreeCoordinates) and p.grad is not None
        }
        for p, stand_in in stand_ins.items():
            self.state[stand_in] = self.state[p]
        params = [stand_ins.get(p, p) for p in group["params"]]
        try:
            return self._init_of_adam({**group, "params": params}, *lists)
        finally:
            for stand_in in stand_ins.values():
                del self.state[stand_in]

    def _init_of_adam(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        return bool(super()._init_group(group, *lists))  # type: ignore[no-untyped-call]


STILL.add(MaskedAdam)
