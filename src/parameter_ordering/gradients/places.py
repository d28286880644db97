"""Whether every sample keeps its place between the layers of a model.

A model may sort, shuffle, route or pack the samples inside: row i of the input of a layer is then
of another sample than row i of the loss. The graph of autograd shows where this could happen, and
there, and now and then elsewhere, it is put to the test: the gradient at the output is multiplied
by a random number for each sample, and what then comes out at a layer has to be the gradient there
times the same numbers. The axis on which it is so is the one that has the samples.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from parameter_ordering.gradients.coupling import rounding
from parameter_ordering.gradients.recorder import Call, Edges, Pass

# What keeps each row where it is, whatever the numbers in it.
_KEEP = frozenset(
    """Abs Acos Acosh Add Addcdiv Addcmul Addmm Alias Asin Asinh AsStrided Atan Atan2 Atanh AvgPool1D
    AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D
    Baddbmm CatArray Celu Clamp ClampMax ClampMin Clone ConstantPadNd Convolution Cos Cosh
    CudnnBatchNorm CudnnRnn Div Dropout Elu Erf Erfc Exp Expm1 Expand FusedDropout Gelu Glu Gru
    Hardsigmoid Hardswish Hardtanh HuberLoss LeakyRelu Lerp LinalgVectorNorm Log Log1P Log2
    LogSigmoid LogSoftmax LogSumExp Logit Lstm MaskedFill Max MaxPool2DWithIndices
    MaxPool3DWithIndices Maximum Minimum Mish MkldnnRnnLayer Mul NanToNum NativeBatchNorm
    NativeDropout NativeGroupNorm NativeLayerNorm Neg Norm Permute PixelShuffle Pow PReluKernel
    Reciprocal ReflectionPad1D ReflectionPad2D Relu Repeat ReplicationPad1D ReplicationPad2D
    Rrelu Rsqrt Rsub Rmsnorm Selu Sigmoid Sign Silu Sin Sinh SmoothL1Loss Softmax Softplus Softshrink
    Sqrt Square Squeeze Sub T Tan Tanh Threshold To ToCopy Transpose Tril Triu Unfold Im2Col Col2Im
    UnsafeView UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D
    UpsampleNearest2D View ViewAsComplex ViewAsReal Where FusedRmsNorm LinearBackward
    ScaledDotProductFlashAttentionForCpu ScaledDotProductEfficientAttention
    ScaledDotProductFlashAttention ScaledDotProductCudnnAttention ReshapeAlias Unsqueeze
    MkldnnConvolution SlowConv3D ThnnConv2D ConvolutionOverrideable""".lower().split()
)
# What does unless it works along the first axis, by the attribute that says which.
_UNLESS_FIRST = {
    name: "_saved_dim"
    for name in (
        "cat", "cumsum", "select", "slice", "split", "splitwithsizes", "stack", "unbind", "mean",
        "sum", "glu", "unfold", "narrow", "std", "var", "amax", "amin", "flip", "prod", "cumprod",
    )
}  # fmt: skip


def graph(within: Pass, outputs: Edges, edges: Edges) -> tuple[int, bool]:
    """A signature of the graph of a pass, and whether samples could have moved in it.

    The signature changes when layers are called otherwise than before.
    """
    S, seen, names, suspicious = within.S or 1, set(), [], False
    stack = [edge.node for edge in outputs.values()]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = node.name()
        names.append(name)
        following = node.next_functions
        if not suspicious and not _keeps(node, name, following, S):
            suspicious = True
        stack.extend(each for each, _ in following if each is not None)
    counts = tuple((id(layer), n) for layer, n in within.calls.items())
    return hash((S, tuple(names), counts)), suspicious


def _keeps(node: Node, name: str, following: tuple, S: int) -> bool:
    kind = name.rstrip("0123456789").removesuffix("Backward").lower()
    if kind in _KEEP or name.endswith("AccumulateGrad"):
        return True
    if kind in _UNLESS_FIRST:
        # All of it, or a part of what has no gradient but that of parameters.
        dim = getattr(node, _UNLESS_FIRST[kind], None)
        if isinstance(dim, tuple):
            return bool(dim) and all(_later(d) for d in dim)
        return dim is not None and _later(dim) or all(_of_parameters(f) for f, _ in following)
    if kind == "mm":
        return _of_parameters(following[1][0])
    if kind == "embedding":
        return _of_parameters(following[0][0])
    if kind == "bmm":
        sizes = [_length(node, saved) for saved in ("_saved_self", "_saved_mat2")]
        return all(n is None or n % S == 0 for n in sizes) and any(n is not None for n in sizes)
    return all(_of_parameters(each) for each, _ in following)


def _later(dim: int) -> bool:
    """Not the first axis; autograd saves what counts from the end as a large unsigned number."""
    return dim != 0


def _length(node: Any, saved: str) -> int | None:
    tensor = getattr(node, saved, None)
    return None if tensor is None else int(tensor.shape[0])


def _of_parameters(node: Node | None) -> bool:
    """Whether this is a parameter, as it is, transposed or in another type."""
    for _ in range(8):
        if node is None:
            return False
        if node.name().endswith("AccumulateGrad"):
            return True
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
    if not send.any():
        return
    targets: list[Any] = [*others.values(), *parameters.values()]
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
        if d.dim() > axis and d.shape[axis] % len(within.weights) == 0:
            if float((_weighted(d, within.weights, axis) - came).norm()) <= tolerance:
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
