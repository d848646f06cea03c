import sys
import textwrap

import pytest
import torch

from compress.errors import ModelError
from compress.models import build


@pytest.fixture
def model_file(tmp_path):
    def write(text: str, name: str = "net.py"):
        path = tmp_path / name
        path.write_text("from torch import nn\n" + textwrap.dedent(text))
        return path

    return write


def test_passes_what_the_signature_accepts(model_file):
    path = model_file("""
        def some(num_classes, image_size):
            return nn.Sequential(nn.Flatten(1), nn.Linear(3 * image_size ** 2, num_classes))

        def every(**sizes):
            assert sorted(sizes) == ["image_size", "in_channels", "num_classes"]
            return some(sizes["num_classes"], sizes["image_size"])

        class Net(nn.Module):
            def __init__(self, num_classes: int):
                super().__init__()
                self.conv = nn.Conv2d(3, num_classes, 3)

            def forward(self, x):
                return self.conv(x).mean((2, 3))
    """)
    for factory in ("some", "every", "Net"):
        model = build(f"{path}:{factory}", num_classes=4, image_size=6)
        assert model(torch.rand(2, 3, 6, 6)).shape == (2, 4)


def test_imports_from_beside_the_file(model_file):
    model_file("def head(n): return nn.Linear(12, n)", name="neighbour_of_net.py")
    path = model_file("""
        from neighbour_of_net import head

        def net(num_classes):
            return nn.Sequential(nn.Flatten(1), head(num_classes))
    """)
    search_path = list(sys.path)
    assert build(f"{path}:net", num_classes=5, image_size=2)(torch.rand(1, 3, 2, 2)).shape == (1, 5)
    assert sys.path == search_path


def test_materialises_lazy_layers(model_file):
    path = model_file("def net(num_classes): return nn.Sequential(nn.Flatten(1), nn.LazyLinear(num_classes))")
    assert build(f"{path}:net", num_classes=5, image_size=4)[1].weight.shape == (5, 48)


@pytest.mark.parametrize(
    "text, factory, message",
    [
        ("def net(): raise OSError('no weights here')", "net", r"net\.py: net\(\) raised OSError: no weights here"),
        ("def net(depth): return nn.Identity()", "net", r"net\.py: net\(\) raised TypeError: .*'depth'"),
        ("def net(): return 3", "net", r"net\.py: net\(\) returned int, expected a torch\.nn\.Module"),
        ("def net(): return nn.Identity()", "nett", r"net\.py: nett is not defined; the file defines: net"),
        ("net = nn.Identity()", "net", r"net\.py: net \(Identity\) cannot be called; the file defines: no function"),
        ("def net(:", "net", r"net\.py: cannot be run: SyntaxError: .*line 2"),
        ("1 / 0", "net", r"net\.py: cannot be run: ZeroDivisionError"),
        ("def net(): return nn.Conv2d(1, 8, 3)", "net", r"net\.py:net: does not take 3x32x32 images: RuntimeError"),
        (
            "def net(): return nn.Conv2d(3, 8, 3)",
            "net",
            r"returns \[1, 8, 30, 30\] .*expected logits of shape \[1, 10\]",
        ),
        ("def net(): raise SystemExit(3)", "net", r"net\.py: net\(\) raised SystemExit: 3"),
        (
            "class Two(nn.Sequential):\n"
            "    def forward(self, x):\n"
            "        y = super().forward(x)\n"
            "        return (y, y) if self.training else y\n"
            "def net(): return Two(nn.Flatten(), nn.Linear(3072, 10))",
            "net",
            r"returns tuple for 2 3x32x32 images in training mode, expected logits of shape \[2, 10\]",
        ),
        ("def net(): return nn.Identity()", "a-b", r"net\.py:a-b: expected FILE\.py:factory"),
    ],
)
def test_refuses_with_one_message(model_file, text, factory, message):
    with pytest.raises(ModelError, match=message):
        build(f"{model_file(text)}:{factory}", num_classes=10)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*absent\.py"):
        build(f"{tmp_path}/absent.py:net", num_classes=10)


def test_refuses_a_file_without_a_factory(model_file):
    with pytest.raises(ModelError, match=r"net\.py: expected FILE\.py:factory"):
        build(str(model_file("")), num_classes=10)
