"""What the layers of a model leave in a forward and backward pass, by hooks.

A forward hook keeps the input of a layer, and a hook on each tensor that it gives hands over the
gradient of that. The record hangs on the graph of autograd and goes with it: a forward pass that is
never differentiated leaves nothing.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from parameter_ordering.gradients.replay import State, random_state


class Pass:
    """A forward pass of the whole model.

    Attributes:
        S: the number of samples, None where no input has an axis of them.
        root: the call of the model itself.
        calls: how often each layer was called.
        weights: random weights of the samples while their places are put to the test, or None.
        weighted: the gradients of the outputs of layers for samples with these weights.
        sums: those of parameters.
        moving: whether samples may change places in it.
        blind: whether their places cannot be put to the test.
        faults: what is wrong, by layer.
        tolerance: how far two orders of computing may be apart.
    """

    def __init__(self, S: int | None):
        self.S = S
        self.root: Call | None = None
        self.calls: Counter[nn.Module] = Counter()
        self.weights: Tensor | None = None
        self.weighted: dict[tuple[Call, int], Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.faults: dict[nn.Module, str] = {}
        self.arrived = self.tested = self.moving = self.blind = False
        self.signature, self.tolerance = 0, 0.0


class Call:
    """One call of a layer: what came in, and the gradients of what went out, as they arrive.

    Attributes:
        random: the state of the random numbers before it, if it has drawn any.
        gradients: by place among the leaves of the output.
        autocast: the arguments that set ``torch.autocast`` as it was.
    """

    def __init__(
        self,
        layer: nn.Module,
        within: Pass,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        autocast: dict[str, Any],
    ):
        self.layer, self.within = layer, within
        self._tensors: list[Tensor] = []
        if kwargs or not all(map(torch.is_tensor, args)):
            self.args, self.kwargs = tree_map(self._detached, (args, kwargs))
        else:  # as for most layers, in much less time
            self.args, self.kwargs = tuple(map(self._detached, args)), kwargs
        self.gradients: dict[int, Tensor] = {}
        self.outputs = 0
        self.random: State | None = None
        self.autocast = autocast
        self._versions = [t._version for t in self._tensors]

    def _detached(self, value: Any) -> Any:
        if not torch.is_tensor(value):
            return value
        self._tensors.append(value.detach())
        return self._tensors[-1]

    def input(self) -> Tensor | None:
        """The input, if it is one tensor and nothing else."""
        given = [*self.args, *self.kwargs.values()]
        return given[0] if len(given) == 1 and torch.is_tensor(given[0]) else None

    def check_unchanged(self) -> None:
        if [t._version for t in self._tensors] != self._versions:
            raise RuntimeError(
                "its input was changed in place after it was called: do that out of place"
            )


class Recorder:
    """The hooks on the layers of a model.

    Args:
        root: the whole model.
        layers: those that own what is followed, and whether each is to be run again, so that
            random numbers count.
        axis: of the samples, in the first tensor that the model is given.
        forward: is told of a pass when the model has been called, with the edges of the graph that
            belong to its outputs, and to those of the layers.
        arrived: is told of each gradient of an output, by call and place.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: dict[nn.Module, bool],
        axis: int,
        forward: "Callable[[Pass, Edges, Edges], None]",
        arrived: Callable[[Call, int, Tensor], None],
    ):
        self.root, self.axis = root, axis
        self.device = next((w.device for w in root.parameters()), torch.device("cpu"))
        self._forward, self._arrived = forward, arrived
        self._pass: Pass | None = None  # the forward pass that goes on
        self._backward: Pass | None = None  # the one whose backward pass goes on
        self._edges: Edges = {}
        self._task = -1, False  # of autograd, and whether it adds to .grad
        self._random: dict[nn.Module, list[State]] = {}
        self._start: State | None = None
        self._handles: list[Any] = []
        self._of_tensors: list[Any] = []  # on the outputs of the last pass
        self.install(layers)

    def install(self, layers: dict[nn.Module, bool]) -> None:
        self.remove()
        add = self._handles.append
        add(self.root.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        for layer, again in layers.items():
            if again:
                add(layer.register_forward_pre_hook(Hook(self._before), with_kwargs=True))
            # First of all forward hooks: others may replace the output.
            hook = Hook(partial(self._record, again))
            add(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
        add(self.root.register_forward_hook(Hook(self._end), with_kwargs=True, always_call=True))

    def remove(self) -> None:
        for handle in self._handles + self._of_tensors:
            handle.remove()
        self._handles.clear()
        self._of_tensors.clear()
        self._edges, self._pass, self._backward = {}, None, None

    def differentiating(self, within: Pass | None) -> None:
        """Calls from now on are repetitions in the backward pass of this pass."""
        self._backward = within

    def _begin(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if silent.depth or in_backward() or self._pass is not None:
            return
        self._backward = None  # a backward pass that has failed never said that it was over
        self._edges = {}
        self._of_tensors.clear()
        sized = (t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t))
        S = next((t.shape[self.axis] for t in sized if t.dim() > self.axis), None)
        self._pass = Pass(S)
        self._random.clear()
        self._start = random_state(self.device)

    def _end(
        self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        within = self._pass
        if silent.depth or in_backward() or within is None:
            return
        self._pass = None
        if output is None or not torch.is_grad_enabled():
            self._edges = {}
            return
        call = within.root = Call(root, within, args, kwargs, self._autocast())
        call.random = self._start
        outputs: Edges = {}
        self._listen(call, output, outputs)
        edges, self._edges = self._edges, {}
        self._forward(within, outputs, edges)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not silent.depth and torch.is_grad_enabled():
            self._random.setdefault(layer, []).append(random_state(self.device))

    def _record(
        self,
        again: bool,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if silent.depth:
            return
        again_in_backward = in_backward()
        within = self._backward if again_in_backward else self._pass
        if within is not None and not again_in_backward:
            within.calls[layer] += 1
        if not torch.is_grad_enabled():
            return
        if within is None:
            within = Pass(None)
            within.faults[layer] = "it is called from outside of the model's own forward"
        call = Call(layer, within, args, kwargs, self._autocast())
        if again:
            before = self._random[layer].pop()
            call.random = before if _drawn(before, random_state(self.device)) else None
        self._listen(call, output, self._edges if within is self._pass else None)

    def _listen(self, call: Call, output: Any, edges: "Edges | None") -> None:
        leaves = [output] if torch.is_tensor(output) else tree_leaves(output)
        call.outputs = len(leaves)
        for k, t in enumerate(leaves):
            if torch.is_tensor(t) and t.requires_grad:
                if t.is_leaf:
                    continue
                hook = Hook(partial(self._receive, call, k))
                self._of_tensors.append(t.register_hook(hook))
                if edges is not None:
                    edges[call, k] = get_gradient_edge(t)

    def _autocast(self) -> dict[str, Any]:
        kind = self.device.type
        return {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }

    def _counts(self) -> bool:
        """Whether this backward pass adds to ``.grad``, unlike one for a gradient of the input."""
        task = torch._C._current_graph_task_id()
        if task != self._task[0]:
            edges = (get_gradient_edge(w) for w in self.root.parameters() if w.requires_grad)
            try:
                counts = any(torch._C._will_engine_execute_node(edge.node) for edge in edges)
            except RuntimeError:  # this is autograd.grad, for a parameter
                counts = False
            self._task = task, counts
        return self._task[1]

    def _receive(self, call: Call, k: int, gradient: Tensor) -> None:
        if not silent.depth and self._counts():
            self._arrived(call, k, gradient.detach())


Edges = dict[tuple[Call, int], GradientEdge]


class silent:
    """Within it, passes forward and backward count for nothing, whoever follows the model."""

    depth = 0

    def __enter__(self) -> None:
        silent.depth += 1

    def __exit__(self, *error: object) -> None:
        silent.depth -= 1


class Hook:
    """A hook that copies and pickles of what it hangs on leave behind."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hook":
        return Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


def in_backward() -> bool:
    """Whether autograd is at work, so that what a layer does is a repetition."""
    return torch._C._current_graph_task_id() != -1


def _nothing(*args: Any) -> None:
    """What is left of a hook in a copy."""


def inner(model: nn.Module) -> nn.Module:
    """The model that data parallelism wraps."""
    return inner(model.module) if isinstance(model, DistributedDataParallel) else model


def _drawn(before: State, after: State) -> bool:
    return any(
        a is not None and b is not None and not torch.equal(a, b)
        for a, b in zip(before, after, strict=True)
    )
