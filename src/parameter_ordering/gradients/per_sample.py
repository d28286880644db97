"""The gradient of each sample of a minibatch, beside its ordinary backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from parameter_ordering.gradients.coupling import Loss, check_loss, check_model, rounding
from parameter_ordering.gradients.factors import Rows
from parameter_ordering.gradients.layers import Call, factors, owned, recorded


class PerSampleGradients:
    """Runs a minibatch forward and backward, and gives the gradients g_i of its samples.

    The ways to the g_i of a parameter, of which the first that is open is taken:

    1. from the input and the output gradient of its layer, if :mod:`.layers` knows it, it is called
       once, and it alone owns the parameter: nothing but the ordinary backward pass;
    2. where only g_1 is asked for, by a second backward pass through the same graph, from the loss
       of the first sample;
    3. by ``torch.func.vmap`` over the samples, with the random numbers of the forward pass drawn
       again;
    4. by one backward pass a sample through the same graph, for what ``vmap`` cannot do.

    So the g_i are always those of the dropout masks of the minibatch. The third runs the model once
    more: buffers and attributes of its modules stay as they were, but what it keeps elsewhere (in a
    list, by a hook) is then from that run.

    The ways are put to the test when a parameter first has a gradient other than zero: what they
    give must add up to the gradient of the minibatch, and what the first gives must begin with the
    g_1 of the second. This finds a weight that a function uses again, and a layer that has the
    samples on another axis. On first use, and again while the gradient at the output or the input
    is zero, a loss that couples the samples is refused, and a model that couples those of real
    inputs.

    Args:
        model: the model.
        names: the parameters to follow, by their names in ``named_parameters()``.
        first_only: whether only g_1 is asked for.
        ensemble_dims: the number E of leading axes of all parameters; axis E of x and y is that of
            the samples.
        mean: whether the loss is the mean over samples; if not, it is their sum.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        first_only: bool,
        ensemble_dims: int,
        mean: bool,
    ):
        self.model, self.first_only, self.E, self.mean = model, first_only, ensemble_dims, mean
        every = dict(model.named_parameters())
        self.parameters = {name: every[name] for name in names}
        self._untested, self._another_way = set(self.parameters), set()
        self._layers = owned(model, self.parameters, ensemble_dims)
        self._dtypes = {name: accumulator_dtype(w) for name, w in self.parameters.items()}
        self._checked = False  # whether model and loss treat each sample by itself
        self._vmap: bool | None = None  # whether that is able to; None before it is tried

    @property
    def by_layer(self) -> set[str]:
        """The names of the parameters that have passed the test of the first way."""
        return self.parameters.keys() - self._untested - self._another_way

    def __call__(
        self, loss_fn: Loss, x: Tensor, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Rows]]:
        """The loss, and g_S and the g_i of each parameter that has a gradient.

        Replaces ``.grad`` of all parameters of the model by the gradient of the loss.
        """
        E, S = self.E, x.shape[self.E]
        self.model.zero_grad()
        random, inputs, leaf = _random_state(x.device), x, None
        if not self._checked and x.is_floating_point():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            inputs = leaf.clone()
        with recorded(self._layers) as calls, _before_masks(self.parameters) as unmasked:
            output = self.model(inputs)
            loss = loss_fn(output, y)
            once = {layer: call[0] for layer, call in calls.items() if len(call) == 1}
            aligned = torch.is_tensor(output) and output.dim() > E and output.shape[E] == S
            if not self._checked:
                self._checked = not aligned or self._check(loss_fn, output, y, leaf)
            # The other ways, and the test of the first, go back through the graph.
            beyond = self._untested or self._another_way or len(once) < len(calls)
            retain = aligned and bool(beyond)
            loss.backward(retain_graph=retain)
        gradients = {n: w.grad for n, w in self.parameters.items() if w.grad is not None}
        g_S = {name: self._mean(name, g, S) for name, g in (gradients | unmasked).items()}
        alone = partial(self._alone, loss_fn, output, y) if retain else None
        g = self._from_layers(once, S) if aligned else {}
        if self._untested and alone:
            self._test(g, g_S, alone, once.values(), S)
        g = {name: g[name] for name in g.keys() & g_S.keys() - self._another_way}
        if rest := sorted(g_S.keys() - g.keys()):
            if self.first_only and alone:
                g.update({n: Rows(v.unsqueeze(E), E) for n, v in alone(0, rest).items()})
            else:
                mapped = partial(self._mapped, loss_fn, x.detach(), y, random)
                g.update(self._of_all({name: g_S[name] for name in rest}, mapped, alone, S))
        return loss.detach(), g_S, g

    def _check(self, loss_fn: Loss, output: Tensor, y: Tensor, leaf: Tensor | None) -> bool:
        """That no sample has a part in the loss of another; whether the gradients show it."""
        shown = check_loss(loss_fn, output, y, self.E, self.mean)
        return shown and (leaf is None or check_model(loss_fn, output, y, leaf, self.E))

    def _mean(self, name: str, gradient: Tensor, S: int) -> Tensor:
        """g_S from the gradient of the loss."""
        gradient = self._dense(name, gradient)
        return gradient if self.mean else gradient / S

    def _dense(self, name: str, gradient: Tensor) -> Tensor:
        """Not sparse, as that of an embedding may be, and in the precision of the accumulator."""
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        return gradient.to(self._dtypes[name])

    def _from_layers(self, calls: dict[nn.Module, Call], S: int) -> dict[str, Rows]:
        """The first way."""
        gradients, E, scale = {}, self.E, S if self.mean else 1
        for layer, call in calls.items():
            a, d, names = call.input, call.output_grad, self._layers[layer]
            if any(t is None or t.dim() <= E or t.shape[E] != S for t in (a, d)):
                continue
            if self.first_only and self._untested.isdisjoint(names.values()):  # a test needs all
                a, d = a.narrow(E, 0, 1), d.narrow(E, 0, 1)
            dtype = self._dtypes[next(iter(names.values()))]
            a = a.to(dtype) if a.is_floating_point() else a
            g = factors(layer, a, d.to(dtype), E, scale)
            gradients.update({names[local]: g[local] for local in g.keys() & names.keys()})
        return gradients

    def _alone(
        self, loss_fn: Loss, output: Tensor, y: Tensor, i: int, names: Iterable[str]
    ) -> dict[str, Tensor]:
        """The second way: g_i from the loss of sample i alone."""
        w = {name: self.parameters[name] for name in names}
        l_i = loss_fn(output.narrow(self.E, i, 1), y.narrow(self.E, i, 1))
        g = torch.autograd.grad(
            l_i, [*w.values()], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return {name: self._dense(name, g) for name, g in zip(w, g, strict=True)}

    def _of_all(
        self, g_S: dict[str, Tensor], mapped: Callable, alone: Callable | None, S: int
    ) -> dict[str, Rows]:
        """The third way, or the fourth."""
        names = list(g_S)
        if self._vmap is not False or alone is None:
            try:
                g = mapped(names)
                self._check_total(g, g_S, S, 0.1 if self._vmap else 0.01)
                self._vmap = True
                return g
            except RuntimeError as error:
                if alone is None:
                    self._untested.update(names)  # so the next update has the graph
                    error.add_note(f"This happened to the gradients of single samples for {names}.")
                    raise
            self._vmap = False
        g = [alone(i, names) for i in range(S)]
        return {name: Rows(torch.stack([g_i[name] for g_i in g], self.E), self.E) for name in names}

    def _mapped(
        self, loss_fn: Loss, x: Tensor, y: Tensor, random: tuple, names: list[str]
    ) -> dict[str, Rows]:
        """The third way."""
        E, whole = self.E, _WithLoss(self.model, loss_fn)
        w = {name: self.parameters[name].detach() for name in names}
        known = {id(self.parameters[name]): name for name in names}
        places = {
            place: known[id(p)] for place, p in _places(whole, "parameters") if id(p) in known
        }
        clones = {id(b): b.clone() for b in whole.buffers()}
        buffers = {place: clones[id(b)] for place, b in _places(whole, "buffers")}

        def loss_of_one(w: dict, buffers: dict, x: Tensor, y: Tensor) -> Tensor:
            state = buffers | {place: w[name] for place, name in places.items()}
            sample = x.unsqueeze(E), y.unsqueeze(E)
            return functional_call(whole, state, sample, tie_weights=False)

        per_sample = vmap(grad(loss_of_one), (None, None, E, E), E, randomness="different")
        with torch.no_grad(), _replayed(random, x.device), _attributes_kept(whole):
            g = per_sample(w, buffers, x, y)
        return {name: Rows(self._dense(name, g_i), E) for name, g_i in g.items()}

    def _test(
        self,
        g: dict[str, Rows],
        g_S: dict[str, Tensor],
        alone: Callable,
        calls: Iterable[Call],
        S: int,
    ) -> None:
        """Whether the first way gives what it should, for those that have a gradient at last."""
        names = g.keys() & g_S.keys() & self._untested
        if not names:
            return
        dtypes = {c.output_grad.dtype for c in calls if c.output_grad is not None}
        tolerance = max(map(rounding, dtypes), default=0.0)
        noise = _noise(g_S, tolerance)

        def equal(u: Tensor, v: Tensor) -> bool:
            return bool((u - v).norm() <= tolerance * v.norm() + noise)

        # Of a gradient of zero any way would pass, and the first gives it.
        names = {n for n in names if max(g_S[n].norm(), g[n].first().norm()) > 2 * noise}
        for name, g_1 in (alone(0, names) if names else {}).items():
            self._untested.remove(name)
            if not (equal(g[name].total() / S, g_S[name]) and equal(g[name].first(), g_1)):
                self._another_way.add(name)

    def _check_total(self, g: dict, g_S: dict, S: int, tolerance: float) -> None:
        """That the g_i add up to the gradient, but for a unit that rounding switches on or off."""
        noise = _noise(g_S, tolerance)
        for name, rows in g.items():
            error = rows.total() / S - g_S[name]
            if not error.norm() <= tolerance * rows.g.norm() / S + noise:
                raise RuntimeError(
                    f"the gradients of single samples for {name!r} do not add up to that of the "
                    "minibatch: the loss is no mean (with reduction='sum' no sum) over samples, a "
                    "layer couples the samples, or one random number is drawn for all of them; "
                    "change that, or leave the parameter out (parameters=...)"
                )


class _WithLoss(nn.Module):
    """A model and its loss as one module: a loss that looks at the parameters sees those given."""

    def __init__(self, model: nn.Module, loss_fn: Loss):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss_fn(self.model(x), y)


def _places(model: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    """All places of the parameters or buffers, those of a module under one of its names only.

    ``functional_call`` loses what was in a place that it is given twice.
    """
    for prefix, module in model.named_modules():
        named = getattr(module, f"named_{kind}")
        yield from named(prefix, recurse=False, remove_duplicate=False)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undoes what modules assign to themselves, as a cached activation or a count of calls."""
    kept = [(vars(module), vars(module).copy()) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.update(before)


def accumulator_dtype(parameter: Tensor) -> torch.dtype:
    """A running mean in half precision would soon stop to move."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _noise(g_S: dict[str, Tensor], tolerance: float) -> float:
    """What rounding may leave of a gradient that vanishes, measured by the largest."""
    return 1e-3 * tolerance * max((float(g.norm()) for g in g_S.values()), default=0.0)


@contextmanager
def _before_masks(parameters: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Gradients as they are before hooks on a parameter change ``.grad``, as `freeze` does."""
    gradients, handles = {}, []
    for name, w in parameters.items():
        if w.requires_grad and w._post_accumulate_grad_hooks:
            keep = partial(lambda name, g: gradients.__setitem__(name, g.clone()), name)
            handles.append(w.register_hook(keep))
    try:
        yield gradients
    finally:
        for handle in handles:
            handle.remove()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The states of the generators of the CPU and of the device."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(device)


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draws the random numbers that follow ``state`` again, then goes on where it was."""
    now = _random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(now, device)
