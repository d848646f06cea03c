"""At which sizes networks are compared: what a ``forward`` does at only some of them must not be passed over."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.surgery import compact
from compress.surgery.input_sizes import all_sizes


def zeros(*shapes):
    return tuple(torch.zeros(shape) for shape in shapes)


def test_the_given_sizes_come_first_and_none_comes_twice():
    sizes = all_sizes(zeros((1, 3, 224, 224)))
    assert sizes[0] == ((1, 3, 224, 224),)
    assert len(sizes) == len(set(sizes))


@pytest.mark.parametrize(
    ("shapes", "other"),
    [
        ([(1, 3, 224, 224)], [(1, 3, 224, 135)]),  # higher than wide
        ([(1, 3, 224, 224)], [(1, 3, 135, 224)]),
        ([(1, 3, 224, 224)], [(2, 3, 253, 253)]),
        ([(1, 16, 16, 3)], [(1, 25, 25, 3)]),  # channels last
        ([(1, 2, 3, 16, 16)], [(1, 2, 3, 25, 25)]),  # films
        ([(1, 3, 16, 16), (1, 4, 1, 1)], [(1, 3, 25, 25), (1, 4, 1, 1)]),
        ([(1, 3, 16, 16), (1, 5, 6)], [(1, 3, 25, 25), (1, 5, 6)]),
        ([(1, 3, 16, 16), (1, 6)], [(1, 3, 25, 25), (1, 6)]),
        ([(1, 32)], [(1, 49)]),  # sound, or features
        ([(1, 8, 6)], [(1, 13, 6)]),  # tokens
        ([(4, 3, 16, 16)], [(1, 3, 16, 16)]),
        ([(), (1, 3, 16, 16)], [(), (2, 3, 16, 16)]),
    ],
    ids=str,
)
def test_sizes_that_some_network_takes_are_tried(shapes, other):
    assert tuple(other) in all_sizes(zeros(*shapes))


class Net(nn.Module):
    """Channels 1 and 2 in between are constant 0.7; ``run`` says what happens around the two convolutions."""

    def __init__(self, run, convolution=nn.Conv2d, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.a, self.b = convolution(channels, 8, 1), convolution(8, 4, 3)
        with torch.no_grad():
            self.a.weight[1:3] = 0
            self.a.bias[1:3] = 0.7

    def forward(self, *inputs):
        return self.run(self, *inputs)


def padded(h):
    """To even sizes."""
    return F.pad(h, (0, h.shape[-1] % 2, 0, h.shape[-2] % 2)) if h.shape[-1] % 2 or h.shape[-2] % 2 else h


def squared(h):
    height, width = h.shape[-2:]
    side = max(height, width)
    return F.pad(h, (0, side - width, 0, side - height)) if height != width else h


AT_SOME_SIZES = {
    "not square": (lambda m, x: m.b(squared(F.relu(m.a(x)))), [(1, 3, 64, 64)], [[(1, 3, 64, 80)], [(2, 3, 80, 64)]]),
    "channels last": (
        lambda m, x: m.b(padded(F.relu(m.a(x.permute(0, 3, 1, 2))))),
        [(1, 16, 16, 3)],
        [[(1, 17, 17, 3)]],
    ),
    "films": (
        lambda m, x: m.b(padded(F.relu(m.a(x.flatten(0, 1))))).unflatten(0, x.shape[:2]).mean(1),
        [(1, 2, 3, 16, 16)],
        [[(1, 2, 3, 17, 17)]],
    ),
    "beside a style": (
        lambda m, x, z: m.b(padded(F.relu(m.a(x)))) * z,
        [(1, 3, 16, 16), (1, 4, 1, 1)],
        [[(1, 3, 17, 17), (1, 4, 1, 1)]],
    ),
    "one sample": (
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1, 1, 1)) if len(x) == 1 else F.relu(m.a(x))),
        [(2, 3, 16, 16)],
        [[(1, 3, 16, 16)]],
    ),
    "one sample of odd size": (
        lambda m, x: m.b(padded(F.relu(m.a(x))) if len(x) == 1 else F.relu(m.a(x))),
        [(1, 3, 16, 16)],
        [[(1, 3, 17, 17)], [(2, 3, 17, 17)]],
    ),
    "a crop by numbers": (
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1, 1, 1))[:, :, 1:17, 1:17]),
        [(1, 3, 16, 16)],
        [[(1, 3, 25, 25)], [(1, 3, 12, 12)]],
    ),
}


@pytest.mark.parametrize("case", AT_SOME_SIZES)
def test_what_happens_at_some_sizes_alone_is_found(case):
    run, example, others = AT_SOME_SIZES[case]
    model = Net(run).double().eval()
    small = compact(model, tuple(torch.randn(shape, dtype=torch.float64) for shape in example)).model
    for shapes in [example, *others]:
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        with torch.no_grad():
            torch.testing.assert_close(small(*inputs), model(*inputs), rtol=1e-10, atol=1e-10)


def test_sound_of_another_length_is_found():
    def run(m, x):
        h = F.relu(m.a(x[:, None]))
        return m.b(F.pad(h, (0, 1)) if h.shape[-1] % 2 else h)

    model = Net(run, nn.Conv1d, channels=1).double().eval()
    small = compact(model, (torch.randn(1, 32, dtype=torch.float64),)).model
    with torch.no_grad():
        for length in (32, 33, 50):
            x = torch.randn(2, length, dtype=torch.float64)
            torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_graph_of_sound_refuses_another_length_if_numbers_in_it_follow_from_it():
    def run(m, x):
        h = m.b(F.relu(m.a(x[:, None])))
        return h.sum(-1) / h.shape[-1]

    made = compact(Net(run, nn.Conv1d, channels=1).eval(), (torch.randn(1, 32),), prefer="graph")
    assert any("the length stays that of the example inputs" in note for note in made.report.notes)
    with pytest.raises(ValueError, match="takes inputs of 32 alone, got 40"):
        made.model(torch.randn(1, 40))


@pytest.mark.parametrize("shape", [(1, 64, 8), (64, 64, 8)], ids=["positions", "places"])
def test_a_table_of_which_other_sizes_take_another_part_is_no_constant(shape):
    """Channel 2 of the table is 0 for the first 14 positions only."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.f, self.table = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(shape))
            with torch.no_grad():
                self.a.weight[2] = 0
                self.a.bias[2] = 0
                self.table[:14, :14, 2] = 0

        def forward(self, x):
            part = self.table[:, : x.shape[1]] if len(self.table) == 1 else self.table[: x.shape[1], : x.shape[2]]
            return self.f(F.relu(self.a(x) + part))

    model = Tokens().double().eval()
    sizes = [(1, n, 6) if shape[0] == 1 else (1, n, n, 6) for n in (8, 12, 20)]
    small = compact(model, (torch.randn(sizes[0], dtype=torch.float64),)).model
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(size, dtype=torch.float64)
            torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
