"""Whether every sample keeps its place between the layers of a model.

A model may sort, shuffle, route or pack the samples inside: row i of the input of a layer is then
of another sample than row i of the loss. The graph of autograd shows where this could happen, and
there, and now and then elsewhere, it is put to the test: the gradient at the output is multiplied
by a random number for each sample, and what then comes out at a layer has to be the gradient there
times the same numbers. The axis on which it is so is the one that has the samples.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from parameter_ordering.gradients.coupling import rounding
from parameter_ordering.gradients.recorder import Call, Edges, Pass

_LEAF = "AccumulateGrad"
# What keeps each row where it is, whatever the numbers in it.
_KEEP = frozenset(
    """Abs Acos Acosh Add Addcdiv Addcmul Alias Asin Asinh Atan Atan2 Atanh AvgPool1D
    AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D
    BinaryCrossEntropy BinaryCrossEntropyWithLogits Celu Clamp ClampMax ClampMin Clone Cos Cosh
    CudnnBatchNorm CudnnRnn Div Dropout Elu Erf Erfc Exp Expm1 Expand FusedDropout Gelu Glu Gru
    Hardsigmoid Hardswish Hardtanh HuberLoss LeakyRelu Lerp Log Log1P Log2
    LogSigmoid LogSoftmax Logit Lstm MaskedFill MaxPool2DWithIndices
    MaxPool3DWithIndices Maximum Minimum Mish MkldnnRnnLayer Mul MseLoss NanToNum NativeBatchNorm
    NativeDropout NativeGroupNorm NativeLayerNorm Neg NllLoss NllLoss2D PixelShuffle Pow PReluKernel
    Reciprocal Relu ReshapeAlias Rrelu Rsqrt Rsub Rmsnorm Selu Sigmoid Sign Silu Sin Sinh
    SmoothL1Loss Softmax Softplus Softshrink Sqrt Square Sub T Tan Tanh Threshold To ToCopy Tril
    Triu Im2Col Col2Im UnsafeView UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D
    UpsampleNearest1D UpsampleNearest2D View ViewAsComplex ViewAsReal Where
    FusedRmsNorm""".lower().split()
) | {_LEAF}
# What does where the rows are on the first axis, with their own weights or neighbours.
_FIRST = ("convolution", "mkldnnconvolution", "slowconv", "thnnconv", "scaleddotproduct")
# What moves rows by numbers that the graph holds, which then are a part of its signature.
_FIXED = {
    "cat": ("dim",),
    "constantpadnd": ("pad",),
    "flip": ("dims",),
    "narrow": ("dim", "start", "length"),
    "permute": ("dims",),
    "reflectionpad1d": ("padding",),
    "reflectionpad2d": ("padding",),
    "repeat": ("repeats",),
    "replicationpad1d": ("padding",),
    "replicationpad2d": ("padding",),
    "roll": ("shifts", "dims"),
    "select": ("dim", "index"),
    "slice": ("dim", "start", "end", "step"),
    "split": ("dim", "split_size"),
    "splitwithsizes": ("dim", "split_sizes"),
    "squeeze": ("dim",),
    "stack": ("dim",),
    "transpose": ("dim0", "dim1"),
    "unbind": ("dim",),
    "unfold": ("dimension", "size", "step"),
    "unsqueeze": ("dim",),
}
# What adds up along an axis; with weights of zero and one that is a choice, if rows are on two.
_ALONG = frozenset(
    """Amax Amin Cumsum LinalgVectorNorm LogSumExp Max Mean Norm Prod Std Sum Var
    VarMean""".lower().split()
)


def graph(within: Pass, outputs: Iterable[Node]) -> int:
    """A signature of the graph of a pass, which changes when layers are called otherwise.

    Marks the pass where samples could move in it, and where this cannot be put to the test.
    """
    numbers: dict[Node, int] = {node: n for n, node in enumerate(dict.fromkeys(outputs))}
    stack = list(numbers)
    signature: list[Any] = [within.S, *map(id, within.calls), *within.calls.values()]
    while stack:
        node = stack.pop()
        kind, following = _kind(node.name()), node.next_functions
        signature += [kind or node.name(), *_shape(node)]
        if kind in _FIXED:
            signature += [str(getattr(node, f"_saved_{each}", "")) for each in _FIXED[kind]]
        elif not kind and hasattr(node, "run_function"):
            _look_inside(node, within)
        elif not within.moving:
            within.moving = not _keeps(node, kind, following, within.S or 1)
        for each, place in following:
            if each is not None and each not in numbers:
                numbers[each] = len(numbers)
                stack.append(each)
            signature += [each and numbers[each], place]
    return hash(tuple(signature))


def _look_inside(node: Any, within: Pass) -> None:
    """A reentrant checkpoint has its graph in the backward pass, and forbids a second one."""
    within.blind, run = True, node.run_function

    def run_and_look(*args: Any) -> Any:
        output = run(*args)
        leaves = (t for t in tree_leaves(output) if torch.is_tensor(t))
        graph(within, [t.grad_fn for t in leaves if t.grad_fn is not None])
        return output

    node.run_function = run_and_look


@cache
def _kind(name: str) -> str:
    """What a node of torch does; nothing for those of others, whose name ends in no number."""
    if name.endswith(_LEAF):
        return _LEAF
    return name.rstrip("0123456789").removesuffix("Backward").lower() if name[-1].isdigit() else ""


def _keeps(node: Node, kind: str, following: tuple[Any, ...], S: int) -> bool:
    if kind in _KEEP:
        return True
    shape = _shape(node)
    if kind and not shape:  # all rows end in one number, such as a loss
        return True
    if kind.startswith(_FIRST):
        return shape[0] % S == 0
    if kind in _ALONG:
        return _shape(*following[0]).count(S) < 2
    if kind in ("mm", "addmm"):  # rows times a weight, not a matrix times the rows
        return _of_parameters(following[-1][0])
    if kind == "embedding":
        return _of_parameters(following[0][0])
    if kind == "bmm" and len(shape) == 3:  # no matrix from samples to samples in it
        between = {*_shape(*following[0])[2:], *_shape(*following[1])[1:2]}
        return shape[0] % S == 0 and not (S in between and S in shape[1:])
    return all(_of_parameters(each) for each, _ in following)


def _shape(node: Any, place: int = 0) -> tuple[int, ...]:
    """Of an output of a node."""
    known = node._input_metadata if node is not None else ()
    return tuple(known[place].shape) if place < len(known) else ()


def _of_parameters(node: Any) -> bool:
    """Whether this is a parameter, as it is, transposed or in another type."""
    for _ in range(8):
        if node is None:
            return False
        if _kind(node.name()) == _LEAF:
            return isinstance(node.variable, nn.Parameter)
        following = node.next_functions
        if len(following) != 1:
            return False
        node = following[0][0]
    return False


def weigh(
    within: Pass,
    place: tuple[Call, int],
    gradient: Tensor,
    outputs: Edges,
    edges: Edges,
    parameters: dict[str, Tensor],
    axis: int,
) -> None:
    """Send the gradient of an output back, weighted, and keep what comes to layers and parameters.

    The graph stays for the backward pass that goes on. What came from another output already is
    not sent again.
    """
    assert within.weights is not None
    send = _weighted(gradient, within.weights, axis) - within.weighted.pop(place, 0)
    others = {key: e for key, e in (outputs | edges).items() if e != outputs[place]}
    targets: list[Any] = [*others.values(), *parameters.values()]
    if not targets or not send.any():
        return
    found = torch.autograd.grad(
        [outputs[place]], targets, [send], retain_graph=True, allow_unused=True
    )
    keys: list[Any] = [*others, *parameters]
    for key, g in zip(keys, found, strict=True):
        if g is not None:
            kept: dict[Any, Tensor] = within.sums if isinstance(key, str) else within.weighted
            g = g.to_dense() if g.is_sparse else g
            kept[key] = kept[key] + g if key in kept else g


def axis_of(within: Pass, place: tuple[Call, int], d: Tensor, axes: list[int]) -> int | None:
    """The first of the axes on which d, weighted, is what has come; None if there is none."""
    assert within.weights is not None
    came = within.weighted.pop(place, None)
    if came is None:
        return axes[0] if axes and not d.any() else None
    tolerance = rounding(d.dtype) * float(came.norm()) + torch.finfo(d.dtype).tiny
    if not came.isfinite().all():  # which proves nothing
        return axes[0] if axes else None
    for axis in axes:
        fits = d.dim() > axis and d.shape[axis] % len(within.weights) == 0
        if fits and float((_weighted(d, within.weights, axis) - came).norm()) <= tolerance:
            return axis
    return None


def _weighted(d: Tensor, weights: Tensor, axis: int) -> Tensor:
    S = len(weights)
    if d.dim() > axis and d.shape[axis] != S and axis == 0 and d.shape[0] % S == 0:
        weights = weights.repeat_interleave(d.shape[0] // S)  # rows of one sample side by side
    elif d.dim() <= axis or d.shape[axis] != S:
        return d  # a number for all samples, such as the loss itself
    shape = [1] * d.dim()
    shape[axis] = len(weights)
    return d * weights.to(d).view(shape)
