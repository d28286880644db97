"""One parameter with a frozen part: masking its gradient, and holding its frozen values still.

The ways do the same; they differ in what they cost and in what they are right for.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # as Adam calls them
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FrozenPart:
    """By ``masked_fill`` and ``where``: for any type of number, and visible to autograd.

    Args:
        p: the parameter.
        mask: True = frozen; of the shape of ``p``, on its device.
        name: what errors call the parameter.
    """

    def __init__(self, p: Tensor, mask: Tensor, name: str):
        self._mask = local(mask)
        self._name = name
        self._factor: float | None = None
        self._factors: Tensor | None = None
        # One for each step that has begun, as steps nest; one that raised never ends.
        self._saved: deque[Tensor | None] = deque(maxlen=4)
        self._still = True

    def mask_gradient(self, p: Tensor) -> None:
        """Make the gradient, if any, zero where the parameter is frozen, also at inf and NaN."""
        if p.grad is None:
            return
        if p.grad.layout != torch.strided:
            raise RuntimeError(
                f"the gradient of {self._name} is sparse, and a freeze needs it dense: "
                "build its layer with sparse=False"
            )
        if local(p.grad) is not p.grad:
            self._zero_(local(p.grad))  # a part of its own of what the processes summed
        elif p.grad.requires_grad or _is_shared(p.grad):
            p.grad = p.grad.masked_fill(self._mask, 0)
        else:
            self._zero_(p.grad)

    def before_step(self, p: Tensor, still: bool) -> None:
        """Mask the gradient; remember the frozen values unless they stay where they are.

        Args:
            p: the parameter.
            still: a step with zero gradient and zero moments moves nothing, and leaves the moments
                zero.
        """
        self.mask_gradient(p)
        self._still &= still  # moments that are not zero any more could move them later
        self._saved.append(None if self._still else self._save(p))

    def scale_(self, p: Tensor, factor: float) -> None:
        """Multiply the free values, as decay does; the factor of each is kept for the next step."""
        if self._factors is None or self._factor != factor:
            self._factor, self._factors = factor, self._spread(p, factor)
        local(p.detach()).mul_(self._factors)

    def _spread(self, p: Tensor, factor: float) -> Tensor:
        one, other = local(p).new_tensor([1.0, factor])
        return torch.where(self._mask, one, other)

    @contextmanager
    def hold(self, p: Tensor) -> Iterator[None]:
        """A time in which others may write to the parameter and move no frozen value."""
        saved = local(p.detach()).clone()
        try:
            yield
        finally:
            now = local(p.detach())
            now.copy_(torch.where(self._mask, saved, now))

    def after_step(self, p: Tensor) -> bool:
        """Put back what the step did to the frozen values; whether there was anything to do."""
        saved = self._saved.pop() if self._saved else None
        if saved is None:
            return False
        self._put_back_(p, saved)
        return True

    def forget(self, p: Tensor, state: dict[str, Any]) -> None:
        """Zero the moments of Adam where the parameter is frozen."""
        self._still |= not self._saved  # a step on its way could move them again
        for name in _MOMENTS:
            if name in state:
                self._zero_(local(state[name].detach()))

    def recall(self, p: Tensor, state: dict[str, Any]) -> None:
        """Undo what :meth:`forget` did to their shape; what it forgot stays zero."""
        self.forget(p, state)

    @torch.enable_grad()
    def _save(self, p: Tensor) -> Tensor:
        return p.clone() if p.grad_fn else local(p.detach()).clone()

    @torch.enable_grad()
    def _put_back_(self, p: Tensor, saved: Tensor) -> None:
        p = p if p.grad_fn else local(p.detach())
        p.copy_(torch.where(self._mask, saved, p))

    def _zero_(self, x: Tensor) -> None:
        x.detach().masked_fill_(self._mask, 0)


class FrozenBits(FrozenPart):
    """On the bits of real numbers.

    On a CPU ``masked_fill_`` and ``where`` take longer than a step of Adam. The bitwise "and" with
    words that are 0 where frozen and all ones where free takes a third of one; inf and NaN are bits
    like any other.
    """

    def __init__(self, p: Tensor, mask: Tensor, name: str):
        super().__init__(p, mask, name)
        self._free = (~self._mask).to(_WORDS[p.element_size()]).neg_()

    def _spread(self, p: Tensor, factor: float) -> Tensor:
        one, other = local(p).new_tensor([1.0, factor]).view(self._free.dtype)
        # In one pass and in the place of the last, where torch.where takes many.
        place = None if self._factors is None else self._factors.view(self._free.dtype)
        return torch.add(one, self._free, alpha=int(one - other), out=place).view(p.dtype)

    def _put_back_(self, p: Tensor, saved: Tensor) -> None:
        bits = local(p.detach()).view(self._free.dtype)
        saved = saved.view(self._free.dtype)
        bits.bitwise_xor_(saved).bitwise_and_(self._free).bitwise_xor_(saved)

    def _zero_(self, x: Tensor) -> None:
        if x.element_size() == self._free.element_size():
            x.view(self._free.dtype).bitwise_and_(self._free)
        else:  # torch allows a gradient of another type than its parameter's
            super()._zero_(x)


class InfiniteMoment(FrozenPart):
    """By a second moment that is infinite, for Adam on gradients that are finite.

    Its step m / sqrt(v) is then zero whatever the gradient, which is not masked: nothing is read or
    written that a step does not read or write anyway.
    """

    @staticmethod
    def holds(p: Tensor, mask: Tensor) -> bool:
        """All values but -0.0, which turns into 0.0 where 0.0 is added."""
        p = local(p.detach())
        return not bool(((p == 0) & p.signbit() & local(mask)).any())

    def before_step(self, p: Tensor, still: bool) -> None:
        self._saved.append(None if still else self._save(p))

    def forget(self, p: Tensor, state: dict[str, Any]) -> None:
        """Zero the first moment and take infinity for the second, where the parameter is frozen."""
        super().forget(p, state)
        for name in _MOMENTS[1:]:
            if name in state:
                local(state[name].detach()).masked_fill_(self._mask, torch.inf)

    def recall(self, p: Tensor, state: dict[str, Any]) -> None:
        """Zero the moments again."""
        super().forget(p, state)


class FreeCoordinates(FrozenPart):
    """By the index of the free coordinates, so that a step can work on these alone.

    It then touches no frozen value, and its moments are as short as :meth:`stand_in`.
    """

    def __init__(self, p: Tensor, mask: Tensor, name: str):
        if local(p) is not p:
            raise ValueError(f"{name} is sharded, and compact moments cannot be: compact=False")
        super().__init__(p, mask, name)
        index = (~mask).flatten().nonzero().squeeze(1)
        short = mask.numel() <= torch.iinfo(torch.int32).max
        self._index = index.to(torch.int32) if short else index

    def stand_in(self, p: Tensor) -> Tensor:
        """The free values of ``p``, flat, with their gradient; for the step in its place."""
        assert p.grad is not None
        stand_in = self._gather(p)
        stand_in.grad = self._gather(p.grad)
        self._saved.append(stand_in)
        return stand_in

    def before_step(self, p: Tensor, still: bool) -> None:
        self._saved.clear()

    def forget(self, p: Tensor, state: dict[str, Any]) -> None:
        """Keep the moments of the free coordinates alone."""
        for moment in _MOMENTS:
            if moment in state and state[moment].shape == p.shape:
                state[moment] = self._gather(state[moment])

    def recall(self, p: Tensor, state: dict[str, Any]) -> None:
        """Moments of the shape of ``p`` again, zero in the frozen part."""
        for name in _MOMENTS:
            if name in state:
                whole = torch.zeros_like(p)
                self._put_back_(whole, state[name])
                state[name] = whole

    def _gather(self, x: Tensor) -> Tensor:
        return x.detach().reshape(-1).index_select(0, self._index)

    def _put_back_(self, p: Tensor, saved: Tensor) -> None:
        flat = p.detach().reshape(-1).scatter_(0, self._index, saved)
        if not p.is_contiguous():
            p.detach().copy_(flat.view(p.shape))

    def _zero_(self, x: Tensor) -> None:
        free = self._gather(x)
        self._put_back_(x.detach().zero_(), free)


def local(x: Tensor) -> Tensor:
    """What this process has of a DTensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


# Private, and the only thing that tells. Where a torch lacks it, all are taken for shared.
_use_count = getattr(torch._C, "_storage_Use_Count", None)


def _owners(x: Tensor) -> int:
    return int(_use_count(x.untyped_storage()._cdata)) if _use_count else 0


_ALONE = _owners(torch.empty(1))


def _is_shared(x: Tensor) -> bool:
    """Whether a write to ``x`` could change another tensor, or a second number of ``x``.

    Where autograd only passes a gradient on, as in ``a.view(2, 3) + b.view(2, 3)``, a and b get the
    same memory, which then has more owners than that of a tensor by itself.
    """
    # A compiler sees no memory, and copies nothing that it need not.
    if _use_count is None or torch.compiler.is_compiling():
        return True
    return _owners(x) > _ALONE or x.untyped_storage().nbytes() < x.nbytes
