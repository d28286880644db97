"""Adam that trains, and with ``compact=True`` remembers, only what is not frozen."""

from typing import Any

from torch import Tensor
from torch.optim import Adam

from parameter_ordering.freezing import _STILL, freeze


class MaskedAdam(Adam):
    r"""torch's own Adam for parameters that :func:`freeze` freezes in part."""

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        compact: bool = False,
        **options: Any,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
        self.defaults["compact"] = compact
        for group in self.param_groups:
            group.setdefault("compact", compact)

    def load_state_dict(self, state_dict: dict) -> None:
        if not hasattr(self, "_freezing"):
            freeze(self)
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("compact", self.defaults["compact"])

    def _init_group(self, group: dict, *lists: list) -> bool:
        """What torch's step works on: for a tensor with compact moments, its free coordinates."""
        if not group["compact"]:
            return super()._init_group(group, *lists)
        params = []
        stand_ins = []
        for p in group["params"]:
            part = self._freezing.parts.get(p) if hasattr(self, "_freezing") else None
            if part is not None and p.grad is not None:
                q = part.stand_in(p)
                self.state[q] = self.state[p]
                stand_ins.append(q)
                p = q
            params.append(p)
        try:
            return super()._init_group({**group, "params": params}, *lists)
        finally:
            for q in stand_ins:
                del self.state[q]


_STILL.add(MaskedAdam)
