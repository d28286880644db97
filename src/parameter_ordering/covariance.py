r"""The covariance of the stochastic gradient, estimated while a model trains: (2.6)."""

import functools
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from parameter_ordering.gradients.coupling import Loss, batch_norms, check_batch_norms
from parameter_ordering.gradients.factors import Rows
from parameter_ordering.gradients.per_sample import PerSampleGradients, accumulator_dtype

__all__ = ["GradientCovariance", "running_mean"]

_SMALL = 1e-3  # a scale below it is multiplied into the sum


def running_mean(t: int) -> float:
    """kappa_t = 1/t of the paper: C_t is the mean of t contributions, and C_0 has no part in it."""
    return 1 / t


class GradientCovariance:
    r"""The covariance matrix of the stochastic gradient, or its diagonal: (2.6).

    With :math:`g_i` the gradient of the loss of sample i of a minibatch of S, and :math:`g_S` their
    mean,

    .. math::
        C_t &= (1 - \kappa_t) \, C_{t-1} + \kappa_t V_t, \\
        V_t &= (g_1 - g_S)(g_1 - g_S)^\top
        \quad \text{or} \quad
        V_t = \frac{1}{S} \sum_{i=1}^{S} (g_i - g_S)(g_i - g_S)^\top

    for ``samples="first"``, the paper, or ``"all"``. For independent samples both :math:`V_t` have
    the mean :math:`(1 - 1/S) \, C` with C the covariance of one :math:`g_i`, never of
    :math:`g_i / S`; where the :math:`g_i` are normal the second has S - 1 times less variance. Its
    unit is that of a squared gradient. :math:`C_t` is an average along the trajectory of the
    parameters, not the covariance at its end; ``kappa`` and ``burn_in`` choose the window.

    The gradients of single samples come from the inputs and output gradients of the layers: "all"
    takes one more matrix product for each weight, "first" next to nothing. For a parameter that
    this does not reach (two layers share it or none owns it, its layer is called twice or is none
    of those known) "first" takes a second backward pass, "all" ``torch.func.vmap``. This is tested
    when the parameter first has a gradient other than zero: the first update takes the time of a
    few.

    Args:
        model: any module, on its device. The parameters that train now are followed; one without a
            gradient in some update, unused or frozen since, has the gradient zero there.
        samples: "first" or "all".
        full: whether to keep the matrix, (p, p), not only its diagonal.
        ensemble_dims: how many leading axes of all parameters tell the models of an ensemble apart.
            The axis after them in x, y and the output is that of the samples, and the loss is
            summed over models.
        reduction: "mean" if the loss is the mean over samples, "sum" if it is their sum.
        parameters: which to follow, as names or as a filter ``(name, parameter) -> bool``; all that
            train by default.
        kappa: the weights, a function of t = 1, 2, ... that counts from the end of the burn-in; or
            a number, for an exponential window.
        burn_in: the number of first updates that leave C as it is.
        initial: C_0, a mapping from names to tensors, or with ``full`` the matrix. Zero by default:
            an exponential window then has reached the share 1 - (1 - kappa)^t of its level, of all
            parameters alike.
        unbiased: whether to multiply V_t by S / (S - 1), so that its mean is C.
        memory_limit: bytes; a larger matrix is refused.

    Attributes:
        t: the number of updates, those of the burn-in included.

    Raises:
        ValueError: for a setting out of range or an unknown name; by :meth:`update` for S < 2, for
            BatchNorm in training mode, and where the first minibatch (or the first with a gradient
            other than zero) shows a loss that is not finite, or a model or a loss that couples the
            samples: not where integers are the inputs, where only later samples see earlier ones,
            or where no label is ``ignore_index`` yet. C and t have not changed then.
        MemoryError: for a matrix above ``memory_limit``.

    Source: Grabovoy, Bakhteev, Strijov, (2.6).

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 0.5)
    >>> C = GradientCovariance(model, samples="all")
    >>> x, y = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 1)
    >>> C.update(nn.functional.mse_loss, x, y)  # g_1 = (1, 0), g_2 = (9, 0)
    tensor(1.2500)
    >>> C.diagonal()
    {'weight': tensor([[16.,  0.]])}
    >>> model.weight.grad  # g_S
    tensor([[5., 0.]])
    """

    def __init__(
        self,
        model: nn.Module,
        samples: str = "first",
        full: bool = False,
        ensemble_dims: int = 0,
        *,
        reduction: str = "mean",
        parameters: Iterable[str] | Callable[[str, nn.Parameter], bool] | None = None,
        kappa: float | Callable[[int], float] = running_mean,
        burn_in: int = 0,
        initial: Mapping[str, Tensor] | Tensor | None = None,
        unbiased: bool = False,
        memory_limit: int = 2**30,
    ):
        if samples not in ("first", "all"):
            raise ValueError(f"samples={samples!r}: take 'first' or 'all'")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: take 'mean' or 'sum'")
        if not callable(kappa) and not 0 < kappa <= 1:
            raise ValueError(f"kappa={kappa!r}: a fixed kappa is in (0, 1]")
        if burn_in < 0:
            raise ValueError(f"burn_in={burn_in!r}: take 0 or more updates")
        if ensemble_dims < 0:
            raise ValueError(f"ensemble_dims={ensemble_dims!r}: take the number of leading axes")
        self.model, self.samples, self.full = model, samples, full
        self.ensemble_dims, self.reduction = ensemble_dims, reduction
        self.kappa, self.burn_in, self.unbiased = kappa, burn_in, unbiased
        self.t = 0
        self._parameters = _select(model, parameters)
        self._ensemble = next(iter(self._parameters.values())).shape[:ensemble_dims]
        for name, w in self._parameters.items():
            if w.dim() < ensemble_dims or w.shape[:ensemble_dims] != self._ensemble:
                raise ValueError(
                    f"parameter {name!r} of shape {tuple(w.shape)}: the {ensemble_dims} leading "
                    f"axes of the ensemble must be the same for all, {tuple(self._ensemble)}"
                )
        self._sizes = [prod(w.shape[ensemble_dims:]) for w in self._parameters.values()]
        # C_t = scale * sum: (2.6) multiplies the scale, and adds to the sum.
        self._scale, self._sum = 1.0, self._zero(memory_limit)
        if initial is not None:
            self._set(initial)
        self._batch_norms = batch_norms(model)
        self._gradients = PerSampleGradients(
            model, self._parameters, samples == "first", ensemble_dims, reduction == "mean"
        )

    def update(self, loss_fn: Loss, x: Tensor, y: Tensor) -> Tensor:
        """One step of (2.6), with the forward and backward pass of a minibatch.

        ``.grad`` of every parameter of the model is replaced, not added to: afterwards it is what
        ``zero_grad()`` and ``loss.backward()`` would have left, ready for ``optimizer.step()``.

        Args:
            loss_fn: gives the loss, ``loss_fn(model(x), y)``; it and the model also take a
                minibatch of one sample.
            x, y: the minibatch, with the samples on axis ``ensemble_dims`` of both.

        Returns:
            The loss, detached.
        """
        S, kappa = self._check(x, y), self._next_kappa()
        loss, g_S, g = self._gradients(loss_fn, x, y)
        if kappa > 0:
            alpha = kappa * S / (S - 1) if self.unbiased else kappa
            add = self._add_to_matrix if self.full else self._add_to_diagonal
            with torch.no_grad():
                self._decay(1 - kappa)
                add(g_S, g, alpha / self._scale)
        self.t += 1
        return loss

    def diagonal(self) -> dict[str, Tensor]:
        """diag(C_t) by parameter name, each of the shape of its parameter; a copy."""
        if not self.full:
            return {name: (self._scale * C).clamp_min_(0) for name, C in self._sum.items()}
        parts = self._sum.diagonal(dim1=-2, dim2=-1).split(self._sizes, -1)
        return {
            name: self._scale * part.reshape(w.shape)
            for (name, w), part in zip(self._parameters.items(), parts, strict=True)
        }

    def matrix(self) -> Tensor:
        """C_t, ``(*E, p, p)``, parameters flattened, in the order of :meth:`diagonal`; a copy."""
        if not self.full:
            raise ValueError("only the diagonal is kept: construct with full=True for the matrix")
        return self._scale * self._sum

    def state_dict(self) -> dict[str, Any]:
        """t and C_t, a sum with its scale, to save with those of the model and its optimizer.

        The sum is not copied.
        """
        return {"t": self.t, "scale": self._scale, "sum": self._sum}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state; the settings are those of this object.

        Raises:
            ValueError: if the state is of other parameters, of other shapes, or of a matrix where
                this is a diagonal. Nothing has changed then.
        """
        t, scale = int(state_dict["t"]), float(state_dict["scale"])
        self._set(state_dict["sum"])
        self.t, self._scale = t, scale

    def _decay(self, beta: float) -> None:
        """C <- beta C."""
        self._scale *= beta
        if self._scale < _SMALL:
            for C in (self._sum,) if self.full else self._sum.values():
                C.mul_(self._scale)
            self._scale = 1.0

    def _add_to_diagonal(self, g_S: dict[str, Tensor], g: dict[str, Rows], alpha: float) -> None:
        for name, g_i in g.items():
            add = g_i.add_first_ if self.samples == "first" else g_i.add_all_
            add(self._sum[name], g_S[name], alpha)

    def _add_to_matrix(self, g_S: dict[str, Tensor], g: dict[str, Rows], alpha: float) -> None:
        E, first = self.ensemble_dims, self.samples == "first"
        deviations = {
            name: (g_i.first().unsqueeze(E) if first else g_i.rows()) - g_S[name].unsqueeze(E)
            for name, g_i in g.items()
        }
        S = next((r.shape[E] for r in deviations.values()), 1)
        r = self._sum.new_zeros(*self._ensemble, S, sum(self._sizes))
        for name, part in zip(self._parameters, r.split(self._sizes, -1), strict=True):
            if name in g:
                part.copy_(deviations[name].reshape(part.shape))
        r, C = r.view(-1, *r.shape[-2:]), self._sum.view(-1, *self._sum.shape[-2:])
        C.baddbmm_(r.mT, r, alpha=alpha / S)

    def _next_kappa(self) -> float:
        t = self.t + 1 - self.burn_in
        if t < 1:
            return 0.0
        kappa = self.kappa(t) if callable(self.kappa) else self.kappa
        if not 0 <= kappa <= 1:
            raise ValueError(f"kappa({t}) = {kappa!r}: the weight of a contribution is in [0, 1]")
        return float(kappa)

    def _check(self, x: Tensor, y: Tensor) -> int:
        E = self.ensemble_dims
        if x.dim() <= E or y.dim() <= E or x.shape[E] != y.shape[E]:
            raise ValueError(
                f"x {tuple(x.shape)} and y {tuple(y.shape)} must have the samples on axis {E}"
            )
        if x.shape[E] < 2:
            raise ValueError(f"S = {x.shape[E]}: one sample is its own mean, take S >= 2")
        check_batch_norms(self._batch_norms.items())
        return x.shape[E]

    def _zero(self, memory_limit: int) -> dict[str, Tensor] | Tensor:
        """C_0 = 0."""
        like = {name: accumulator_dtype(w) for name, w in self._parameters.items()}
        if not self.full:
            return {
                name: torch.zeros(w.shape, dtype=like[name], device=w.device)
                for name, w in self._parameters.items()
            }
        p, models = sum(self._sizes), prod(self._ensemble)
        dtype = functools.reduce(torch.promote_types, like.values())
        size = models * p * p * dtype.itemsize
        if size > memory_limit:
            raise MemoryError(
                f"the full covariance of {models} x {p} parameters takes {size:,} bytes, above "
                f"memory_limit={memory_limit:,}: follow fewer (parameters=...), keep the diagonal "
                "only, or raise the limit"
            )
        device = next(iter(self._parameters.values())).device
        return torch.zeros(*self._ensemble, p, p, dtype=dtype, device=device)

    def _set(self, C: Mapping[str, Tensor] | Tensor) -> None:
        """C as given, once all of it is found to fit."""
        if self.full == isinstance(C, Mapping):
            kinds = ("a diagonal", "the full matrix")
            raise ValueError(
                f"C is given as {kinds[not self.full]}: full={self.full} takes {kinds[self.full]}"
            )
        own, given = ({"C": self._sum}, {"C": C}) if self.full else (self._sum, C)
        if own.keys() != given.keys():
            raise ValueError(f"C is for {sorted(given)}, the parameters followed are {sorted(own)}")
        for name, old in own.items():
            if given[name].shape != old.shape:
                raise ValueError(
                    f"C of {name!r} has shape {tuple(given[name].shape)}, not {tuple(old.shape)}"
                )
        for name, old in own.items():
            old.copy_(given[name])


def _select(
    model: nn.Module, which: Iterable[str] | Callable[[str, nn.Parameter], bool] | None
) -> dict[str, nn.Parameter]:
    """The parameters to follow, in the order of the model."""
    every = dict(model.named_parameters())
    if which is None or callable(which):
        names = [n for n, w in every.items() if w.requires_grad and (which is None or which(n, w))]
    else:
        names = list(which)
        if unknown := [name for name in names if name not in every]:
            raise ValueError(f"unknown parameters {unknown}; the model has {list(every)}")
        if len(set(names)) < len(names):
            raise ValueError(f"a name stands twice in parameters={names}")
        if frozen := [name for name in names if not every[name].requires_grad]:
            raise ValueError(f"parameters {frozen} have requires_grad=False, so no gradient")
    if not names:
        raise ValueError("no parameter to follow: none is selected that requires a gradient")
    if compl := [name for name in names if every[name].is_complex()]:
        raise ValueError(f"parameters {compl} are complex: hold them as torch.view_as_real")
    chosen = set(names)
    return {name: w for name, w in every.items() if name in chosen}
