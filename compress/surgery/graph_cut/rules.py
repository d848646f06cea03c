"""The one table of a cut graph: op -> how it is written when channels leave."""

from __future__ import annotations

from collections.abc import Mapping

from compress.graph.aten.ops import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONVOLUTION,
    CONVOLUTION_TRANSPOSED,
    MOVEMENT,
    MOVEMENT_OF_FLOATS,
    REDUCTIONS,
    UNCHANGED,
    WINDOWS,
    named,
)
from compress.graph.aten.trace import DROPOUT
from compress.surgery.graph_cut.elementwise import (
    Rule,
    along,
    copied,
    created,
    embedding,
    getitem,
    glu,
    instance_norm,
    named_dim,
    normalised_dims,
    pointwise,
    reduce,
    unchanged,
    windows,
)
from compress.surgery.graph_cut.layers import batch_norm, conv, conv_transposed, dropout, linear, prelu
from compress.surgery.graph_cut.movement import index, move, view
from compress.surgery.graph_cut.products import attention, einsum, matrix_product
from compress.surgery.graph_cut.stays import POINTWISE

ALWAYS: Mapping[str, Rule] = {
    "getitem": getitem,
    **named(view, "view reshape _unsafe_view"),
    **named(conv, CONVOLUTION),
    **named(conv_transposed, CONVOLUTION_TRANSPOSED),
    "linear": linear,
    **named(batch_norm, BATCH_NORM),
    "prelu": prelu,
    **named(dropout, DROPOUT),
    **named(unchanged, "alias lift_fresh lift_fresh_copy"),
}
"""Op -> rule, also where nothing leaves: layers become modules."""

WHERE_CUT: Mapping[str, Rule] = {
    **named(move, MOVEMENT),
    **named(move, MOVEMENT_OF_FLOATS),
    **named(move, "pad constant_pad_nd"),
    **named(index, "index index_select"),
    **named(copied, UNCHANGED),
    **named(pointwise, "to _to_copy"),
    **dict.fromkeys(POINTWISE, pointwise),
    **named(created, "zeros ones full new_zeros new_ones new_full"),
    **named(pointwise, "zeros_like ones_like full_like zero fill"),
    **named(along(windows), WINDOWS),
    **named(along(windows), AVERAGE_POOLING),
    "upsample_bicubic2d": along(windows),
    **named(reduce, REDUCTIONS),
    **named(along(named_dim), "softmax _softmax log_softmax _log_softmax"),
    **named(along(normalised_dims), "layer_norm native_layer_norm rms_norm"),
    "instance_norm": instance_norm,
    "embedding": embedding,
    "glu": glu,
    **named(matrix_product, "matmul bmm mm"),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
"""Op -> rule where some channels leave. What is not here must not lose any."""
