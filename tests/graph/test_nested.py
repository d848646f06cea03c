from collections import namedtuple

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

from compress.graph.nested import leaves, map_only

Pair = namedtuple("Pair", "a b")

NESTED = (1, [2.0, (None, "x")], immutable_list([3, immutable_list()]), {"k": (4,)}, immutable_dict(z=5), Pair(6, [7]))


def test_leaves_come_in_order():
    assert leaves(NESTED) == [1, 2.0, None, "x", 3, 4, 5, 6, 7]
    assert leaves(8) == [8]
    assert leaves(()) == []


def test_only_one_kind_is_mapped_and_the_structure_stays():
    found = map_only(int, lambda number: number * 10, NESTED)
    assert found == (10, [2.0, (None, "x")], [30, []], {"k": (40,)}, {"z": 50}, (60, [70]))
    assert NESTED[0] == 1


def test_arguments_of_a_graph_are_walked():
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.cat, ([x, x],), {"dim": x})
    assert leaves((node.args, node.kwargs)) == [x, x, x]
    assert map_only(fx.Node, str, (node.args, node.kwargs)) == ((["x", "x"],), {"dim": "x"})
