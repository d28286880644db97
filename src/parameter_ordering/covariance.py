"""The covariance of the stochastic gradient, estimated while a model trains: (2.6)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parameter_ordering.per_sample import FACTORS


def _running_mean(t: int) -> float:
    return 1 / t


class GradientCovariance:
    def __init__(
        self,
        model: nn.Module,
        samples: str = "first",
        full: bool = False,
        ensemble_dims: int = 0,
        *,
        reduction: str = "mean",
        kappa: Callable[[int], float] = _running_mean,
    ):
        self.model, self.samples, self.full = model, samples, full
        self.ensemble_dims, self.reduction, self.kappa = ensemble_dims, reduction, kappa
        self.t = 0
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        names = {id(p): n for n, p in self._parameters.items()}
        self._layers = {
            module: {k: names[id(p)] for k, p in module.named_parameters(recurse=False)}
            for module in model.modules()
            if isinstance(module, nn.Linear)
        }
        E = ensemble_dims
        if full:
            some = next(iter(self._parameters.values()))
            p = sum(p[(0,) * E].numel() for p in self._parameters.values())
            self._C = some.new_zeros(*some.shape[:E], p, p).detach()
        else:
            self._C = {n: torch.zeros_like(p).detach() for n, p in self._parameters.items()}

    def update(self, loss_fn, x: Tensor, y: Tensor) -> Tensor:
        S = x.shape[self.ensemble_dims]
        if S < 2:
            raise ValueError(f"S = {S}: a minibatch of one sample has no covariance, take S >= 2")
        self.model.zero_grad()
        calls, handles = {}, []

        def record(module, args, output):
            calls[module] = call = [args[0].detach(), None]
            handles.append(output.register_hook(lambda d: call.__setitem__(1, d)))

        try:
            handles += [m.register_forward_hook(record, prepend=True) for m in self._layers]
            loss = loss_fn(self.model(x), y)
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        scale = S if self.reduction == "mean" else 1
        with torch.no_grad():
            factors = {}
            for module, (a, d) in calls.items():
                for local, factor in FACTORS[nn.Linear](module, a, d, scale).items():
                    if local in self._layers[module]:
                        factors[self._layers[module][local]] = factor
            self.t += 1
            self._accumulate(factors, self.kappa(self.t), scale / S)
        return loss.detach()

    def _accumulate(self, factors: dict, kappa: float, mean: float) -> None:
        E = self.ensemble_dims
        if self.full:
            first = self.samples == "first"
            flat = []
            for n, p in self._parameters.items():
                g = factors[n].first().unsqueeze(E) if first else factors[n].rows()
                flat.append((g - mean * p.grad.unsqueeze(E)).flatten(E + 1))
            g = torch.cat(flat, -1)
            g = g.flatten(0, -3) if E else g.unsqueeze(0)
            C = self._C.view(-1, *self._C.shape[-2:])
            C.baddbmm_(g.mT, g, beta=1 - kappa, alpha=kappa / g.shape[-2])
            return
        for n, p in self._parameters.items():
            if self.samples == "first":
                g = factors[n].first() - mean * p.grad
                self._C[n].mul_(1 - kappa).addcmul_(g, g, value=kappa)
            else:
                factors[n].add_mean_square_(self._C[n], 1 - kappa, kappa)
                self._C[n].addcmul_(p.grad, p.grad, value=-kappa * mean**2)

    def diagonal(self) -> dict[str, Tensor]:
        E = self.ensemble_dims
        if not self.full:
            return {n: C.clamp_min(0) for n, C in self._C.items()}
        sizes = [p[(0,) * E].numel() for p in self._parameters.values()]
        parts = self._C.diagonal(dim1=-2, dim2=-1).split(sizes, -1)
        return {
            n: part.reshape(p.shape).clone()
            for (n, p), part in zip(self._parameters.items(), parts, strict=True)
        }

    def matrix(self) -> Tensor:
        if not self.full:
            raise ValueError("only the diagonal was kept: construct with full=True")
        return self._C.clone()
