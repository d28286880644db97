r"""The covariance of the stochastic gradient, estimated while a model trains: (2.6)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parameter_ordering.gradients.coupling import batch_norms, check_batch_norms, check_layers
from parameter_ordering.gradients.following import Following
from parameter_ordering.gradients.per_sample import Batch, PerSampleGradients
from parameter_ordering.gradients.per_sample import samples as count
from parameter_ordering.gradients.processes import mean_over_processes
from parameter_ordering.gradients.running import Running
from parameter_ordering.gradients.selected import check_whole, selected

__all__ = ["GradientCovariance", "running_mean"]


def running_mean(t: int) -> float:
    """kappa_t = 1/t of the paper: C_t is the mean of t contributions, and C_0 has no part in it."""
    return 1 / t


class GradientCovariance:
    r"""The covariance matrix of the stochastic gradient, or its diagonal: (2.6).

    With :math:`g_i` the gradient of the loss of sample i of a minibatch of S, and :math:`g_S` their
    mean,

    .. math::

        \begin{aligned}
        C_t &= (1 - \kappa_t) \, C_{t-1} + \kappa_t V_t, \\
        V_t &= (g_1 - g_S)(g_1 - g_S)^\top
        \quad \text{or} \quad
        V_t = \frac{1}{S} \sum_{i=1}^{S} (g_i - g_S)(g_i - g_S)^\top
        \end{aligned}

    for ``samples="first"``, the paper, or ``"all"``. For independent samples both :math:`V_t` have
    the mean :math:`(1 - 1/S) \, C` with C the covariance of one :math:`g_i`, never of
    :math:`g_i / S`; where the :math:`g_i` are normal the second has S - 1 times less variance. Its
    unit is that of a squared gradient. :math:`C_t` is an average along the trajectory of the
    parameters, not the covariance at its end; ``kappa`` and ``burn_in`` choose the window.

    :meth:`update` has the forward and backward pass of a minibatch in it; :meth:`attach` follows
    whatever training goes on. Either way the gradients of single samples come from the inputs and
    output gradients of the layers: "all" takes one more matrix product for each weight, "first"
    next to nothing. A layer without a rule (:func:`.register_rule`) is differentiated again, by
    itself; what no layer alone accounts for, with the whole model. That the shares add up to the
    gradient is tested at the first pass, where the graph changes, and now and then; that the
    samples keep their places, wherever they could move. A pass that is tested takes the time of a
    few. Where a model is differentiated again, its hooks run again.

    Args:
        model: any module, on its device. The parameters that train now are followed; one without a
            gradient in some update, unused or frozen since, has the gradient zero there.
        samples: "first" or "all".
        full: whether to keep the matrix, (p, p), not only its diagonal.
        ensemble_dims: how many leading axes of all parameters tell the models of an ensemble apart.
            The axis after them in x, y and the output is that of the samples, and the loss is
            summed over models.
        batch_dim: the axis of the samples in the first input of the model and in its output: 1
            where time comes first.
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
        one_sample: whether to "refuse" a minibatch of one sample, or "count" it, with V_t = 0.
        memory_limit: bytes; a larger matrix is refused.

    Attributes:
        t: the number of updates, those of the burn-in included.

    Raises:
        ValueError: for a setting out of range or an unknown name; for sharded parameters (FSDP) and
            an embedding with ``scale_grad_by_freq``; by :meth:`update` for S < 2, for BatchNorm in
            training mode, for a gradient of somebody else in ``.grad``, and where the first
            minibatch (or the first with a gradient other than zero) shows a loss that is not
            finite, the other ``reduction``, or a model that couples the samples of real inputs. C
            and t have not changed then.
        RuntimeError: by :meth:`update`, where shares do not add up to the gradient.
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
        batch_dim: int = 0,
        reduction: str = "mean",
        parameters: Iterable[str] | Callable[[str, nn.Parameter], bool] | None = None,
        kappa: float | Callable[[int], float] = running_mean,
        burn_in: int = 0,
        initial: Mapping[str, Tensor] | Tensor | None = None,
        unbiased: bool = False,
        one_sample: str = "refuse",
        memory_limit: int = 2**30,
    ):
        for what, given, allowed in (
            ("samples", samples, ("first", "all")),
            ("reduction", reduction, ("mean", "sum")),
            ("one_sample", one_sample, ("refuse", "count")),
        ):
            if given not in allowed:
                raise ValueError(f"{what}={given!r}: take {allowed[0]!r} or {allowed[1]!r}")
        if not callable(kappa) and not 0 < kappa <= 1:
            raise ValueError(f"kappa={kappa!r}: a fixed kappa is in (0, 1]")
        if burn_in < 0:
            raise ValueError(f"burn_in={burn_in!r}: take 0 or more updates")
        if ensemble_dims < 0:
            raise ValueError(f"ensemble_dims={ensemble_dims!r}: take the number of leading axes")
        if batch_dim not in (0, 1) or (batch_dim and ensemble_dims):
            raise ValueError(f"batch_dim={batch_dim!r}: 0 or 1, and 0 for an ensemble")
        self.model, self.samples, self.full = model, samples, full
        self.ensemble_dims, self.reduction, self.batch_dim = ensemble_dims, reduction, batch_dim
        self.kappa, self.burn_in, self.unbiased = kappa, burn_in, unbiased
        self.one_sample, self.t, first = one_sample, 0, samples == "first"
        self._parameters = selected(model, parameters)
        self._C = Running(self._parameters, ensemble_dims, full, first, memory_limit)
        if initial is not None:
            self._C.set(initial)
        check_whole(self._parameters)
        check_layers(model)
        self._batch_norms = batch_norms(model)
        self._gradients = PerSampleGradients(
            model, self._parameters, first, ensemble_dims, reduction == "mean", batch_dim
        )
        self._attached: Following | None = None
        self._sizes_seen = 0  # of the minibatches so far, as one number

    def update(
        self, loss_fn: Callable[..., Tensor], x: Batch, y: Any, *, scaler: Any = None
    ) -> Tensor:
        """One step of (2.6), with the forward and backward pass of a minibatch.

        ``.grad`` of every parameter of the model, and of ``loss_fn`` if it has any, is replaced:
        afterwards it is what ``zero_grad()`` and ``loss.backward()`` would have left, ready for
        ``optimizer.step()``. Only what an update has left may be replaced, or zero: to accumulate
        gradients, :meth:`attach`.

        Args:
            loss_fn: gives the loss, ``loss_fn(model(x), y)``. Where output and y are tensors, it
                also takes a minibatch of one sample.
            x: the minibatch: a tensor, or several in a tuple for ``model(*x)``, or in a dict for
                ``model(**x)``; the samples are on axis ``ensemble_dims`` or ``batch_dim``.
            y: the answers, in whatever form ``loss_fn`` takes them.
            scaler: a ``GradScaler``. It multiplies the loss and then has to step; C is as without.

        Returns:
            The loss, detached.
        """
        if self._attached is not None:
            raise RuntimeError("C follows an optimizer: call detach() before update()")
        S, kappa = self._check(x, y), self._next_kappa()
        loss, g_S, g = self._gradients(loss_fn, x, y, scaler)
        if kappa > 0:
            with torch.no_grad():
                self._C.decay(1 - kappa)
                self._C.add(g_S, g, self._alpha(kappa, S))
        self.t, self._sizes_seen = self.t + 1, hash((self._sizes_seen, S))
        return loss

    def attach(self, optimizer: Any, scaler: Any = None) -> None:
        r"""Follow whatever training goes on: each step of ``optimizer`` is one t of (2.6).

        Nobody has to call anything else, and training has the same bits as without. The gradient of
        a step, before it is clipped, is a sum of shares, ``.grad`` = :math:`s_1 + ... + s_N`, over
        all N samples since the step before, whatever the loss: :math:`s_i` is what flows back
        through the rows of sample i. Here :math:`g_i = N s_i`. For a loss that is a mean over
        samples this is :meth:`update`; for a mean over tokens, or with class weights, it is the
        pull of sample i as training feels it.

        - *Accumulation.* Micro-batches make one V_t; "first" takes the first sample of the first.
        - *What leaves no trace*: a pass without gradients or without ``backward()``, a gradient
          that ``zero_grad()`` drops, a step that a ``GradScaler`` skips.
        - *Processes.* With ``DistributedDataParallel`` training sends nothing more, but gradients
          that a freeze masks. What reads C, :meth:`diagonal`, :meth:`matrix`, :meth:`state_dict`,
          takes the mean over processes: each has to call it, and gets the same bits. All need
          minibatches of the same size.
        - *Copies* of the model, as of an average of its weights, and of C are not attached.

        Args:
            optimizer: of torch, that trains all that C follows; or what Accelerate, Lightning and
                others wrap around one.
            scaler: the ``GradScaler`` that multiplies the loss, if there is one.

        Raises:
            TypeError: for LBFGS, and for what is no optimizer.
            ValueError: for parameters that the optimizer does not train, that it steps in the
                backward pass, or that are sharded (FSDP); for BatchNorm in training mode.
            RuntimeError: if C is attached already. From the step of the optimizer, with parameters
                and state, t and C as they were: shares that do not add up to the gradient, a
                minibatch of one sample, a gradient that ``zero_grad()`` has not cleared.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> _ = nn.init.constant_(model.weight, 0.5)
        >>> C = GradientCovariance(model, samples="all")
        >>> C.attach(optimizer)
        >>> model(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).square().mean().backward()
        >>> optimizer.step()
        >>> C.t, C.diagonal()
        (1, {'weight': tensor([[16.,  0.]])})
        >>> C.detach()
        """
        if self._attached is not None:
            raise RuntimeError("C follows an optimizer already: call detach() before")
        if self.ensemble_dims:
            raise ValueError("attach follows one model, not an ensemble: use update")
        check_batch_norms(self._batch_norms.items())
        self._C.move(self._parameters)
        self._attached = Following(self, optimizer, scaler)

    def detach(self) -> None:
        """Follow no longer: all hooks are gone, C and t stay."""
        if self._attached is not None:
            self._attached.remove()
            self._attached = None

    def diagonal(self) -> dict[str, Tensor]:
        """diag(C_t) by parameter name, each of the shape of its parameter; a copy."""
        return self._C.diagonal(self._over_processes())

    def matrix(self) -> Tensor:
        """C_t, ``(*E, p, p)``, parameters flattened, in the order of :meth:`diagonal`; a copy."""
        if not self.full:
            raise ValueError("only the diagonal is kept: construct with full=True for the matrix")
        return self._C.scale * self._over_processes()  # type: ignore[return-value, operator]

    def state_dict(self) -> dict[str, Any]:
        """t and C_t, a sum with its scale, to save with those of the model and its optimizer.

        The sum is not copied, unless it is that of several processes. A step that has begun is no
        part of it.
        """
        return {"t": self.t, "scale": self._C.scale, "sum": self._over_processes()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state; the settings are those of this object.

        Raises:
            ValueError: if the state is of other parameters, of other shapes, or of a matrix where
                this is a diagonal. Nothing has changed then.
        """
        t, scale = int(state_dict["t"]), float(state_dict["scale"])
        self._C.set(state_dict["sum"])
        self.t, self._C.scale = t, scale

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not attached."""
        return vars(self) | {"_attached": None}

    def _alpha(self, kappa: float, S: int) -> float:
        return kappa * S / (S - 1) if self.unbiased and S > 1 else kappa

    def _over_processes(self) -> dict[str, Tensor] | Tensor:
        """The sum, as a mean over the processes that train this model together."""
        if not self._gradients.shares.distributed:
            return self._C.sum
        parts = mean_over_processes(self._C.parts(), (self.t, self._sizes_seen))
        return parts[0] if self.full else dict(zip(self._parameters, parts, strict=True))

    def _next_kappa(self) -> float:
        t = self.t + 1 - self.burn_in
        if t < 1:
            return 0.0
        kappa = self.kappa(t) if callable(self.kappa) else self.kappa
        if not 0 <= kappa <= 1:
            raise ValueError(f"kappa({t}) = {kappa!r}: the weight of a contribution is in [0, 1]")
        return float(kappa)

    def _check(self, x: Batch, y: Any) -> int:
        axis = self.ensemble_dims or self.batch_dim
        S = count(x, axis)
        shapes = "x"
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            shapes = f"x {tuple(x.shape)} and y {tuple(y.shape)}"
            S = S if y.dim() > axis and y.shape[axis] == S else None
        if S is None:
            raise ValueError(f"{shapes} must have the samples on axis {axis}")
        self._check_size(S)
        check_batch_norms(self._batch_norms.items())
        return S

    def _check_size(self, S: int) -> None:
        if S < 2 and self.one_sample == "refuse":
            raise ValueError(f"S = {S}: one sample is its own mean, take S >= 2, or count it")
