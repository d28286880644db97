"""The gradient of each sample of a minibatch, beside its ordinary backward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from parameter_ordering.gradients.coupling import check_loss, check_model
from parameter_ordering.gradients.factors import Factors, Rows, Sum
from parameter_ordering.gradients.processes import exchanged
from parameter_ordering.gradients.recorder import silent
from parameter_ordering.gradients.running import accumulator_dtype
from parameter_ordering.gradients.shares import Shares
from parameter_ordering.gradients.steps import scale_of

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


class PerSampleGradients:
    r"""Runs a minibatch forward and backward, and gives the gradients g_i of its samples.

    :math:`g_i = S s_i` for the shares :math:`s_i` of :class:`.Shares`, or :math:`s_i` itself where
    the loss is a sum over samples. On first use, and again while the gradient at the output or the
    input is zero, a loss is refused that is the other of the two, and so is a model that couples
    the samples of real inputs.

    Args:
        model: the model.
        names: the parameters to follow, by their names in ``named_parameters()``.
        first_only: whether only g_1 is asked for.
        ensemble_dims: the number E of leading axes of all parameters; axis E of x and y is that of
            the samples.
        mean: whether the loss is the mean over samples; if not, it is their sum.
        batch_dim: the axis of the samples where there is no ensemble.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        first_only: bool,
        ensemble_dims: int,
        mean: bool,
        batch_dim: int = 0,
    ):
        self.model, self.mean = model, mean
        every = dict(model.named_parameters())
        self.parameters = {name: every[name] for name in names}
        self.axis, self._ensemble = ensemble_dims or batch_dim, ensemble_dims > 0
        self.shares = Shares(model, self.parameters, first_only, self.axis, self._ensemble)
        self._dtypes = {name: accumulator_dtype(w) for name, w in self.parameters.items()}
        self._checked = False  # whether model and loss treat each sample by itself

    @property
    def by_layer(self) -> set[str]:
        """The names of the parameters that a rule for their layer has proved right for."""
        return self.shares.by_rule

    def __call__(
        self, loss_fn: Callable[..., Tensor], x: Batch, y: Any, scaler: Any = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Rows]]:
        """The loss, and g_S and the g_i of each parameter that has a gradient.

        Replaces ``.grad`` of all parameters of the model, and of the loss, by the gradient of the
        loss, times the factor of the scaler.
        """
        trained = [*self.model.parameters(), *getattr(loss_fn, "parameters", tuple)()]
        _check_replaceable(trained)
        for w in trained:
            w.grad = None
        shares = self.shares
        inputs, leaf = self._with_leaf(x)
        shares.start()
        try:
            output = called(self.model, inputs)
            loss = loss_fn(output, y)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError("loss_fn must give one number, as with reduction='mean' or 'sum'")
            if not self._checked:
                self._checked = self._check(loss_fn, output, y, leaf)
            scale = scale_of(scaler)
            alone = self._alone(loss_fn, loss, output, y)
            with _gradients_before_hooks(self.parameters, shares.distributed) as before:
                (loss if scaler is None else scaler.scale(loss)).backward()
            g = {n: w.grad for n, w in self.parameters.items() if w.grad is not None}
            if shares.distributed:
                local, g = before, g | exchanged(before, self.parameters)
            else:
                local = g = g | before
            found = shares.finish({n: each for n, each in local.items() if n not in alone})
        finally:
            shares.stop()
        if shares.error is not None:
            raise RuntimeError(shares.error)
        for w in trained:
            if w.grad is not None:
                w.grad._of_update = True
        S = shares.S or 1
        divisor = scale if self.mean else S * scale
        g_S = {n: self._dense(n, each, divisor) for n, each in g.items()}
        if shares.distributed:
            found = _to_add_up(found, g_S, S)
        for rows in found.values():
            rows.scale = (S if self.mean else 1) / scale
        found |= alone
        g_S = {name: each for name, each in g_S.items() if name in found}
        return loss.detach(), g_S, {name: found[name] for name in g_S}

    def _with_leaf(self, x: Batch) -> tuple[Batch, Tensor | None]:
        if self._checked or not isinstance(x, Tensor) or not x.is_floating_point():
            return x, None
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        return leaf.clone(), leaf

    def _check(self, loss_fn: Callable[..., Tensor], output: Any, y: Any, x: Tensor | None) -> bool:
        """That no sample has a part in the loss of another; whether the gradients show it."""
        axis = self.axis
        tensors = isinstance(output, Tensor) and isinstance(y, Tensor)
        if not tensors or output.dim() <= axis or y.dim() <= axis:
            return True
        if output.shape[axis] != y.shape[axis]:
            return True
        with silent():
            shown = check_loss(loss_fn, output, y, axis, self.mean)
            try:
                return shown and (x is None or check_model(loss_fn, output, y, x, axis))
            except RuntimeError:  # reentrant checkpoints forbid to ask; the shares will tell
                return shown

    def _alone(
        self, loss_fn: Callable[..., Tensor], loss: Tensor, output: Any, y: Any
    ) -> dict[str, Rows]:
        """The g_i of parameters that the loss itself uses, from the losses of single samples."""
        if not isinstance(output, Tensor) or output.grad_fn is None or not isinstance(y, Tensor):
            return {}
        used = _parameters_beyond(loss.grad_fn, output.grad_fn)
        w = {name: w for name, w in self.parameters.items() if id(w) in used}
        if not w:
            return {}
        rows: list[tuple[Tensor, ...]] = []
        axis = self.axis
        with silent():
            for i in range(1 if self.shares.first_only else output.shape[axis]):
                l_i = loss_fn(output.narrow(axis, i, 1), y.narrow(axis, i, 1))
                rows.append(
                    torch.autograd.grad(
                        l_i, [*w.values()], retain_graph=True, materialize_grads=True
                    )
                )
        return {
            name: Rows(torch.stack([self._dense(name, g, 1) for g in each], axis), axis)
            for name, each in zip(w, zip(*rows, strict=True), strict=True)
        }

    def _dense(self, name: str, gradient: Tensor, divisor: float) -> Tensor:
        """Not sparse, as that of an embedding may be, and in the precision of the accumulator."""
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        gradient = gradient.to(self._dtypes[name])
        return gradient if divisor == 1 else gradient / divisor


def called(model: nn.Module, x: Batch) -> Any:
    """``model(x)``, ``model(*x)`` or ``model(**x)``."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, (tuple, list)) else model(x)


def samples(x: Batch, axis: int) -> int | None:
    """S, from the first tensor that has the axis."""
    tensors = (t for t in tree_leaves(x) if torch.is_tensor(t) and t.dim() > axis)
    return next((t.shape[axis] for t in tensors), None)


def _check_replaceable(parameters: Iterable[Tensor]) -> None:
    """That no gradient is thrown away that some other backward pass has left for a step."""
    for w in parameters:
        g = w.grad
        if g is not None and not hasattr(g, "_of_update") and (g.is_sparse or g.any()):
            raise ValueError(
                ".grad holds a gradient that another backward pass has left, and update replaces "
                "it: call zero_grad() before; to accumulate, use attach(optimizer)"
            )


def _to_add_up(found: dict[str, Rows], g_S: Mapping[str, Tensor], S: int) -> dict[str, Rows]:
    """Shares whose squares are added up before those of g_S, the mean of all processes, leave.

    They are zero for a parameter that other processes alone have used.
    """
    zero = {n: Rows(torch.zeros_like(g).expand(S, *g.shape)) for n, g in g_S.items()}
    return {
        n: each if isinstance(each, Factors) else Sum([each]) for n, each in (zero | found).items()
    }


def _parameters_beyond(loss: Node | None, output: Node) -> set[int]:
    """The parameters that the graph of the loss reaches not through the output."""
    found, seen, stack = set(), {output}, [loss]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (w := getattr(node, "variable", None)) is not None:
            found.add(id(w))
        stack.extend(each for each, _ in node.next_functions)
    return found


@contextmanager
def _gradients_before_hooks(
    parameters: Mapping[str, Tensor], every: bool
) -> Iterator[dict[str, Tensor]]:
    """Gradients as they are before hooks on a parameter change ``.grad``, as `freeze` does.

    Or before other processes have a part in them.
    """
    gradients: dict[str, Tensor] = {}
    handles = []
    for name, w in parameters.items():
        if w.requires_grad and (every or w._post_accumulate_grad_hooks):
            keep = partial(lambda name, g: gradients.__setitem__(name, g.clone()), name)
            handles.append(w.register_hook(keep))
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()
