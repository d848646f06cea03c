"""Accuracy of graphs, by counting."""

import numpy as np
import pytest

from export import accuracy_of
from export.errors import ExportError


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_right_answers_are_counted(make_graph, batch):
    model = make_graph([("Identity", ["x"], ["y"], {})], x=(batch, 3), y=(batch, 3))
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    batches = [(scores[:4], np.array([0, 1, 0, 0])), (scores[4:], np.array([1, 1]))]
    assert accuracy_of(model, batches) == 4 / 6


def test_what_cannot_be_measured_is_refused(make_graph):
    model = make_graph([("Identity", ["x"], ["y"], {})], x=(4, 3), y=(4, 3))
    with pytest.raises(ExportError, match="no images to measure"):
        accuracy_of(model, [])
    with pytest.raises(ExportError, match="6 images cannot be run in batches of 4"):
        accuracy_of(model, [(np.zeros((6, 3), np.float32), np.zeros(6, np.int64))])
    with pytest.raises(ExportError, match=r"fails on images of shape \(4, 2\)"):
        accuracy_of(model, [(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))])
