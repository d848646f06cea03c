"""Layers: modules with cut parameters, under the names that the original gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from compress.graph.aten.labels import place
from compress.graph.aten.ops import conv_arguments, conv_transposed_arguments
from compress.graph.aten.trace import base_name, functional
from compress.surgery.graph_cut.cutter import Cutter, Result, Value, aten
from compress.surgery.graph_cut.elementwise import pointwise, whole
from compress.surgery.graph_cut.layout import kept_mask, kept_where
from compress.surgery.graph_cut.source import source_line
from compress.surgery.graph_cut.state import Conflict, Slices

CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
BATCH_NORMS: dict[int, type[_BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Dimensions of the activation -> module."""

DROPOUTS: dict[str, type[_DropoutNd]] = {
    "dropout": nn.Dropout,
    "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}


def conv(cutter: Cutter, node: fx.Node) -> Result:
    """A convolution: rows and columns of its weight, group by group."""
    x, weight, bias, stride, padding, dilation, groups = conv_arguments(node.args)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return _convolve(cutter, node, (x, weight, bias), groups, options, transposed=False)


def conv_transposed(cutter: Cutter, node: fx.Node) -> Result:
    """The same, transposed: the weight is ``[in, out / groups, *kernel]``."""
    x, weight, bias, stride, padding, output_padding, groups, dilation = conv_transposed_arguments(node.args)
    options = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    return _convolve(cutter, node, (x, weight, bias), groups, options, transposed=True)


def _convolve(
    cutter: Cutter,
    node: fx.Node,
    operands: tuple[Any, Any, Any],
    groups: int,
    options: dict[str, Any],
    *,
    transposed: bool,
) -> Result:
    x, weight, bias = operands
    if not _is_stored(cutter, weight) or not (bias is None or _is_stored(cutter, bias)):
        return whole(cutter, node)
    value, shape = cutter.present(node, x), weight.meta["val"].shape
    dim = len(value.layout.shape) + 1 - len(shape)
    layout = cutter.layout(node)
    if not layout.is_plain or not value.layout.is_plain:
        raise cutter.block(node, "a convolution of channels that were cut unevenly")
    inputs, outputs = (
        kept_mask(some.kept(dim), some.shape[dim]).reshape(groups, -1) for some in (value.layout, layout)
    )
    stays = inputs.any(1) & outputs.any(1)
    if bool((outputs.any(1) & ~stays).any()):
        raise cutter.block(node, "a group of the convolution keeps outputs, but no input")
    counts = [{int(n) for n in side[stays].sum(1)} for side in (inputs, outputs)]
    if any(len(count) != 1 for count in counts):
        raise cutter.block(node, "the groups of the convolution do not keep equally many channels")
    value = cutter.narrow(node, value, {dim: kept_where((inputs & stays[:, None]).flatten())})
    blocks = _blocks(inputs, outputs, stays, transposed=transposed)
    left, (n_in,), (n_out,) = int(stays.sum()), *counts
    parameters = {"weight": (weight, Slices(blocks))}
    if bias is not None:
        parameters["bias"] = (bias, Slices(((kept_where(outputs.flatten()),),)))

    def make() -> nn.Module:
        kind, kernel = CONVOLUTIONS[base_name(node)], tuple(shape[2:])
        return kind(n_in * left, n_out * left, kernel, groups=left, bias=bias is not None, **options)

    args = (*node.args[:6], left, *node.args[7:]) if groups > 1 else node.args
    return _layer(cutter, node, value, parameters, make, args)


def _blocks(
    inputs: Tensor, outputs: Tensor, stays: Tensor, *, transposed: bool
) -> tuple[tuple[Tensor | None, ...], ...]:
    """The block of the weight for each group that stays, from bool ``[groups, channels]``."""
    rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
    if rows.shape[0] == 1:
        return ((kept_where(rows[0]), kept_where(columns[0])),)
    return tuple(
        (rows[g].nonzero().flatten() + g * rows.shape[1], kept_where(columns[g]))
        for g in stays.nonzero().flatten().tolist()
    )


def linear(cutter: Cutter, node: fx.Node) -> Result:
    """A linear layer on the last dimension; a bias that is computed is added behind it."""
    x, weight, bias = _arguments(node, 3)
    if not _is_stored(cutter, weight):
        return whole(cutter, node)
    stored = bias is not None and _is_stored(cutter, bias)
    arguments = node.args if stored else node.args[:2]
    value, layout = cutter.present(node, x), cutter.layout(node)
    if not layout.is_plain or not value.layout.is_plain:
        raise cutter.block(node, "a linear layer on features that were cut unevenly")
    last = len(layout.shape) - 1
    value = cutter.narrow(node, value, {**{d: layout.kept(d) for d in range(last)}, last: value.layout.kept(last)})
    parameters = {"weight": (weight, Slices(((layout.kept(last), value.layout.kept(last)),)))}
    if stored:
        parameters["bias"] = (bias, Slices(((layout.kept(last),),)))
    sizes = value.layout.sizes[last], layout.sizes[last]
    result = _layer(cutter, node, value, parameters, lambda: nn.Linear(*sizes, bias=stored), arguments)
    if bias is None or stored or not isinstance(result, Value):
        return result
    shift = cutter.narrow(node, cutter.present(node, bias), {0: layout.kept(last)})
    return cutter.held(node, cutter.call(node, aten.add.Tensor, result.node, shift.node))


def is_matrix(cutter: Cutter, argument: Any) -> bool:
    """Whether it is a parameter or buffer of two dimensions, as the network stores it."""
    return _is_stored(cutter, argument) and len(argument.meta["val"].shape) == 2


def matrix(cutter: Cutter, node: fx.Node) -> Result:
    """``x @ weight``, where the weight ``[in, out]`` is a parameter of the network."""
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    value, layout = cutter.present(node, x), cutter.layout(node)
    if not layout.is_plain or not value.layout.is_plain:
        raise cutter.block(node, "a product of features that were cut unevenly")
    last = len(layout.shape) - 1
    value = cutter.narrow(node, value, {**{d: layout.kept(d) for d in range(last)}, last: value.layout.kept(last)})
    slices = Slices(((value.layout.kept(last), layout.kept(last)),))
    try:
        stored = cutter.emit(node, *cutter.state.attribute(cutter.flow.trace.tensors[weight.name][0], slices))
    except Conflict as conflict:
        raise cutter.block(node, f"{conflict} is read in two different parts") from None
    return cutter.held(node, cutter.call(node, functional(node), value.node, stored))


def batch_norm(cutter: Cutter, node: fx.Node) -> Result:
    """A BatchNorm; where it sees fewer channels than there are, they are picked in front of it."""
    several = isinstance(node.meta["val"], (tuple, list))
    x, scale, shift, mean, variance, *numbers = _arguments(node, 8)
    training, momentum, eps = (False, *numbers[:2]) if several else numbers
    named = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
    stored = {attribute: tensor for attribute, tensor in named.items() if tensor is not None}
    layout = cutter.layout(node)[0] if several else cutter.layout(node)
    if not all(_is_stored(cutter, tensor) for tensor in stored.values()) or (scale is None) != (shift is None):
        return whole(cutter, node)
    if (mean is None) != bool(training) or not isinstance(x, fx.Node):
        return whole(cutter, node)
    if not layout.is_plain:
        raise cutter.block(node, "BatchNorm of channels that were cut unevenly")
    value = cutter.narrow(node, cutter.present(node, x), {d: layout.kept(d) for d in range(len(layout.shape))})
    slices = Slices(((layout.kept(1),),))

    def make() -> nn.Module:
        original = cutter.state.original(place(node))
        return BATCH_NORMS[len(layout.shape)](
            layout.sizes[1],
            eps=eps,
            momentum=original.momentum if isinstance(original, _BatchNorm) else momentum,
            affine=scale is not None,
            track_running_stats=mean is not None,
        )

    return _layer(cutter, node, value, {a: (tensor, slices) for a, tensor in stored.items()}, make, node.args)


def prelu(cutter: Cutter, node: fx.Node) -> Result:
    """One slope a channel, or one for all."""
    x, slope = _arguments(node, 2)
    if not _is_stored(cutter, slope):
        return whole(cutter, node)
    layout = cutter.layout(node)
    if not layout.is_plain:
        raise cutter.block(node, "PReLU of channels that were cut unevenly")
    value = cutter.narrow(node, cutter.present(node, x), {d: layout.kept(d) for d in range(len(layout.shape))})
    kept = None if slope.meta["val"].numel() == 1 else layout.kept(1)
    size = 1 if slope.meta["val"].numel() == 1 else layout.sizes[1]
    return _layer(cutter, node, value, {"weight": (slope, Slices(((kept,),)))}, lambda: nn.PReLU(size), node.args)


def dropout(cutter: Cutter, node: fx.Node) -> Result:
    """Dropout as a module, so that it follows the training mode; one that insists on dropping stays as it is."""
    x, p, insists = _arguments(node, 3)
    if insists:
        return pointwise(cutter, node)
    value = cutter.value(x)
    if value is None:
        return None
    written = cutter.emit(node, "call_module", cutter.state.helper("dropout", DROPOUTS[base_name(node)](p)), value.node)
    return Value(written, value.layout, value.sizes)


def _arguments(node: fx.Node, count: int) -> tuple[Any, ...]:
    """The first arguments of a node; ``None`` for those that it leaves out."""
    return (*node.args, *[None] * count)[:count]


def _is_stored(cutter: Cutter, node: Any) -> bool:
    """Whether an argument is a parameter or buffer as the network stores it."""
    return isinstance(node, fx.Node) and node.name in cutter.flow.trace.tensors


def _layer(
    cutter: Cutter,
    node: fx.Node,
    value: Value,
    parameters: Mapping[str, tuple[fx.Node, Slices]],
    make: Callable[[], nn.Module],
    args: tuple[Any, ...],
) -> Result:
    """Write a layer as a module; where its parameters have unusual names, as a call with ``args``."""
    names = {attribute: (cutter.flow.trace.tensors[n.name][0], s) for attribute, (n, s) in parameters.items()}
    several = isinstance(node.meta["val"], (tuple, list))
    try:
        path = cutter.state.layer(names, make)
        if path is not None:
            written = cutter.emit(node, "call_module", path, value.node)
            return (cutter.held(node, written, 0), None, None) if several else cutter.held(node, written)
        stored = {n: cutter.emit(node, *cutter.state.attribute(*names[a])) for a, (n, _) in parameters.items()}
    except Conflict as conflict:
        raise cutter.block(node, f"{conflict} is read in two different parts") from None
    if "running_mean" in parameters:
        cutter.notes.append(f"{source_line(node)}: keeps its statistics in training, since it shares parameters")
    written_args = [
        value.node if i == 0 else stored.get(a, a) if isinstance(a, fx.Node) else a for i, a in enumerate(args)
    ]
    return cutter.results(node, cutter.call(node, functional(node), *written_args, **node.kwargs))
