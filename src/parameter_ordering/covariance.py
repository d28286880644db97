"""The covariance of the stochastic gradient, estimated while a model trains: (2.6)."""

import functools
from collections.abc import Callable, Iterable, Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from parameter_ordering.factors import Rows
from parameter_ordering.per_sample import (
    Loss,
    PerSampleGradients,
    accumulator_dtype,
    batch_gradient,
)


def running_mean(t: int) -> float:
    """kappa_t = 1/t of the paper: C_t is the mean of all t contributions, and C_0 has no part in it."""
    return 1 / t


class GradientCovariance:
    r"""The covariance matrix of the stochastic gradient, or its diagonal: (2.6).

    With g_i the gradient of the loss of sample i of a minibatch of S, and g_S the mean of the g_i,

    .. math::
        C_t = (1 - \kappa_t)\, C_{t-1} + \kappa_t\, V_t,
        \qquad
        V_t = \begin{cases}
            (g_1 - g_S)(g_1 - g_S)^\top & \text{samples="first", the paper} \\
            \frac{1}{S} \sum_i (g_i - g_S)(g_i - g_S)^\top & \text{samples="all"}
        \end{cases}

    For independent samples both V_t have the mean (1 - 1/S) C, with C the covariance of one g_i; "all" has
    S - 1 times less variance where the g_i are normal. C is that of g_i, never of g_i/S, and has the unit
    of a squared gradient. It is an average along the trajectory of the parameters, not C at its end:
    `burn_in` and `kappa` choose the window.

    Parameters
    ----------
    model
        any module, on its device already. Its trainable parameters at this moment are followed; one that
        has no gradient in an update, unused or frozen since, counts with the gradient zero.
    samples
        "first" (the paper) or "all".
    full
        whether to keep the whole matrix, p x p numbers.
    ensemble_dims
        how many leading axes of all parameters tell models of an ensemble apart; axis `ensemble_dims` of
        x, y and the output is then that of the samples, and the loss is summed over models.
    reduction
        "mean" if the loss is the mean over samples, "sum" if it is their sum.
    parameters
        which to follow: names, or a filter ``(name, parameter) -> bool``; None for all that train.
    kappa
        the weight of a contribution: a function of t = 1, 2, ... after `burn_in`, or a number in (0, 1] for an
        exponential window (with C_0 = 0 it holds the share 1 - (1 - kappa)^t of its limit, the same for
        every parameter). Default 1/t, the running mean.
    burn_in
        the number of first updates that leave C as it is.
    initial
        C_0: the diagonal as a dict of tensors, or with `full` the matrix. Default 0. With kappa = 1/t it is
        gone after one step; with 1/(t + 1) it weighs as much as one contribution.
    unbiased
        whether to multiply V_t by S/(S - 1), so that its mean is C.
    memory_limit
        the size of a full matrix, in bytes, above which it is refused.

    Attributes
    ----------
    t : int
        the number of updates, those of `burn_in` included.

    Raises
    ------
    ValueError
        for a setting out of range or an unknown name; in `update` for S < 2, a BatchNorm in training mode, and a model or loss
        that couples the samples. C and t are then as before.
    MemoryError
        if `full` needs more than `memory_limit`.

    Notes
    -----
    `update` costs one backward pass and about a third (one more product for each weight) with "all", less with
    "first", where the layers are of `parameter_ordering.factors.FACTORS`; see `PerSampleGradients` for the rest.
    A parameter shared by layers, or by two calls of one, needs a second backward pass with "first" and a
    `torch.func.vmap` over the minibatch with "all". The second moment is accumulated before g_S is
    subtracted: a standard deviation below sqrt(eps) |g_S| is not resolved in the diagonal of "all".

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> C = GradientCovariance(model, samples="all")
    >>> x, y = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 1)
    >>> with torch.no_grad():
    ...     _ = model.weight.fill_(0.5)
    >>> C.update(nn.functional.mse_loss, x, y)  # g_1 = [1, 0], g_2 = [9, 0]
    tensor(1.2500)
    >>> C.diagonal()
    {'weight': tensor([[16.,  0.]])}
    >>> model.weight.grad  # g_S, ready for optimizer.step()
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
        self.model, self.samples, self.full, self.ensemble_dims = (
            model,
            samples,
            full,
            ensemble_dims,
        )
        self.reduction, self.burn_in, self.unbiased = reduction, burn_in, unbiased
        self.kappa = kappa
        self.t = 0
        self._parameters = _select(model, parameters)
        self._ensemble = next(iter(self._parameters.values())).shape[:ensemble_dims]
        for name, w in self._parameters.items():
            if w.dim() < ensemble_dims or w.shape[:ensemble_dims] != self._ensemble:
                raise ValueError(
                    f"parameter {name!r} of shape {tuple(w.shape)}: with ensemble_dims={ensemble_dims} all "
                    f"parameters have the same leading axes, here {tuple(self._ensemble)}"
                )
        self._sizes = [prod(w.shape[ensemble_dims:]) for w in self._parameters.values()]
        self._C = self._zero(memory_limit)
        if initial is not None:
            self._start(initial)
        self._batch_norms = {
            name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)
        }
        self._gradients = PerSampleGradients(
            model, self._parameters, samples == "first", ensemble_dims, reduction == "mean"
        )

    def update(self, loss_fn: Loss, x: Tensor, y: Tensor) -> Tensor:
        """One step of (2.6) on a minibatch, and its ordinary backward pass.

        Parameters
        ----------
        loss_fn
            gives the loss ``loss_fn(model(x), y)``, one number; also of a minibatch of one sample.
        x, y
            the minibatch, (*E, S, ...) each with the samples on axis `ensemble_dims`.

        Returns
        -------
        Tensor
            the loss, detached.

        ``.grad`` of every parameter of the model is replaced (not added to) by the gradient of this loss, as
        after ``optimizer.zero_grad()`` and ``loss.backward()``: ready for ``optimizer.step()``.
        """
        S, kappa = self._check(x, y), self._next_kappa()
        loss, g = self._gradients(loss_fn, x, y)
        if kappa > 0:
            alpha = kappa * S / (S - 1) if self.unbiased else kappa
            add = self._add_to_matrix if self.full else self._add_to_diagonal
            with torch.no_grad():
                add(g, S, 1 - kappa, alpha)
        self.t += 1
        return loss

    def diagonal(self) -> dict[str, Tensor]:
        """diag(C_t) by parameter name, each of the shape of its parameter; a copy."""
        if not self.full:
            return {name: C.clamp_min(0) for name, C in self._C.items()}
        parts = self._C.diagonal(dim1=-2, dim2=-1).split(self._sizes, -1)
        return {
            name: part.reshape(w.shape).clone()
            for (name, w), part in zip(self._parameters.items(), parts, strict=True)
        }

    def matrix(self) -> Tensor:
        """C_t, (*E, p, p), the parameters flattened and in the order of `diagonal`; a copy."""
        if not self.full:
            raise ValueError("only the diagonal is kept: construct with full=True for the matrix")
        return self._C.clone()

    def _add_to_diagonal(self, g: dict[str, Rows], S: int, beta: float, alpha: float) -> None:
        for name, C in self._C.items():
            if name in g:
                add = g[name].add_first_ if self.samples == "first" else g[name].add_all_
                add(C, self._mean_gradient(name, S), beta, alpha)
            else:
                C.mul_(beta)

    def _add_to_matrix(self, g: dict[str, Rows], S: int, beta: float, alpha: float) -> None:
        E, rows = self.ensemble_dims, 1 if self.samples == "first" else S
        r = self._C.new_zeros(*self._ensemble, rows, sum(self._sizes))
        for name, part in zip(self._parameters, r.split(self._sizes, -1), strict=True):
            if name in g:
                g_i = g[name].first().unsqueeze(E) if rows == 1 else g[name].rows()
                part.copy_((g_i - self._mean_gradient(name, S).unsqueeze(E)).reshape(part.shape))
        r, C = r.view(-1, *r.shape[-2:]), self._C.view(-1, *self._C.shape[-2:])
        C.baddbmm_(r.mT, r, beta=beta, alpha=alpha / rows)

    def _mean_gradient(self, name: str, S: int) -> Tensor:
        gradient = batch_gradient(self._parameters[name])
        return gradient if self.reduction == "mean" else gradient / S

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
        for name, layer in self._batch_norms.items():
            if layer.training or layer.running_mean is None:
                raise ValueError(
                    f"{name or 'the model'} is a BatchNorm that normalises by the statistics of the minibatch: it "
                    "couples the samples, so none has a gradient of its own; call eval() on this layer, "
                    "or use GroupNorm or LayerNorm"
                )
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
                f"the full covariance of {models} x {p} parameters takes {size:,} bytes, over "
                f"memory_limit={memory_limit:,}: follow fewer (parameters=...), keep the diagonal, or "
                "raise the limit"
            )
        device = next(iter(self._parameters.values())).device
        return torch.zeros(*self._ensemble, p, p, dtype=dtype, device=device)

    def _start(self, initial: Mapping[str, Tensor] | Tensor) -> None:
        """C_0 as given."""
        own, given = ({"C": self._C}, {"C": initial}) if self.full else (self._C, initial)
        if own.keys() != given.keys():
            raise ValueError(
                f"initial is for {sorted(given)}, the parameters followed are {sorted(own)}"
            )
        for name, C in own.items():
            if given[name].shape != C.shape:
                raise ValueError(
                    f"initial of {name!r} has shape {tuple(given[name].shape)}, not {tuple(C.shape)}"
                )
            C.copy_(given[name])


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
