"""How fast surgery is, and how fast what it leaves behind.

    python experiments/surgery_speed.py latency --markdown docs/results/surgery-latency.md
    python experiments/surgery_speed.py rounding --markdown docs/results/surgery-rounding.md
    python experiments/surgery_speed.py seconds --markdown docs/results/surgery-seconds.md

Half of the free channels of each network are dead, with a BatchNorm shift that is not 0: the hard case, in which
constants are folded and carried.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from page import Page, about, environment
from torch import Tensor, nn

import compress
from compress.graph import channel_graph
from compress.models import build
from compress.surgery import CompactResult
from export import to_onnx

BENCH = Path(sys.executable).parent / "bench"
LATENCY = ("resnet18", "mobilenet_v2", "vgg11_bn")
ROUNDED = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "vgg11_bn")
BLOCKS = (1, 4, 8, 16)
STAGES = ("resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t")
LARGE = (
    *("vgg19_bn", "wide_resnet101_2", "regnet_x_32gf", "efficientnet_b7", "maxvit_t", "swin_s", "swin_v2_t", "swin_b"),
    *("convnext_large", "vit_l_32"),
)
GROWTH = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201")


def network(name: str) -> nn.Module:
    """A torchvision network with BatchNorm statistics, scales and shifts as training leaves them."""
    torch.manual_seed(0)
    model = build(f"torchvision:{name}", num_classes=1000, in_channels=3, image_size=224).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
        if isinstance(module, nn.Linear) and not module.weight.any():  # a classifier that starts at zero
            nn.init.normal_(module.weight, 0, 0.02)
    return model


@torch.no_grad()
def kill_half_(model: nn.Module, x: Tensor, *, shifts: bool) -> None:
    """Zero half of the free classes of channels; their BatchNorm shifts stay, or are zeroed too."""
    graph = channel_graph(model, (x,))
    generator = torch.Generator().manual_seed(0)
    dead = graph.free() & (torch.rand(graph.classes.count, generator=generator) < 0.5)
    parameters = dict(model.named_parameters())
    for (name, dim), classes in graph.out_slices().items():
        if name in parameters and not (shifts and name.endswith("bias")):
            parameters[name].index_fill_(dim, dead[classes].nonzero().flatten(), 0)


def masked(name: str, x: Tensor, *, shifts: bool) -> nn.Module:
    """A network half of whose free channels are dead."""
    model = network(name)
    kill_half_(model, x, shifts=shifts)
    return model


def halved(name: str, x: Tensor, *, shifts: bool) -> tuple[nn.Module, CompactResult]:
    """The masked network and what surgery made of it."""
    model = masked(name, x, shifts=shifts)
    return model, compress.compact(model, (x,))


def direct(name: str, result: CompactResult) -> nn.Module:
    """A new network of random weights at the widths of a compact one."""
    model = network(name)
    result.plan.reshape_(model)
    return model


def ratio(model: Path, baseline: Path, seconds: float) -> str:
    """Latency of one file over another's with its 95 % interval, as ``bench latency`` measures it."""
    report = model.with_suffix(".json")
    command = [BENCH, "latency", model, "--baseline", baseline, "--json", report, "--min-seconds", str(seconds)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(report.read_text())["ratio"]
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def latency_rows(seconds: float) -> Iterable[tuple[str, ...]]:
    """Compact over masked, over a network of the same widths, and over one of as many channels as live."""
    x = torch.randn(1, 3, 224, 224)
    for name in LATENCY:
        model, result = halved(name, x, shifts=True)
        _, without_shifts = halved(name, x, shifts=False)
        networks = {
            "masked": model,
            "compact": result.model,
            "same widths": direct(name, result),
            "living channels": direct(name, without_shifts),
        }
        with tempfile.TemporaryDirectory() as folder:
            files = {key: Path(folder) / f"{key.replace(' ', '-')}.onnx" for key in networks}
            for key, file in files.items():
                to_onnx(networks[key], (x,), file)
            ratios = [ratio(files["compact"], files[key], seconds) for key in networks if key != "compact"]
        carried = sum(layer.after for layer in result.report.layers.values()) - sum(
            layer.after for layer in without_shifts.report.layers.values()
        )
        yield (name, f"{result.report.max_exact_error:.0e}", str(carried), *ratios)


def rounding_rows(seconds: float) -> Iterable[tuple[str, ...]]:
    """Size and latency of compact networks over the masked one, by the block that widths are rounded to."""
    x = torch.randn(1, 3, 224, 224)
    for name in ROUNDED:
        model = masked(name, x, shifts=True)
        with tempfile.TemporaryDirectory() as folder:
            whole, small = Path(folder) / "masked.onnx", Path(folder) / "compact.onnx"
            to_onnx(model, (x,), whole)
            for block in BLOCKS:
                result = compress.compact(model, (x,), round_to=block)
                to_onnx(result.model, (x,), small)
                report = result.report
                macs, params = report.macs_after / report.macs_before, report.params_after / report.params_before
                shares = (f"{macs:.1%}", f"{params:.1%}")
                yield (name, str(block), *shares, f"{report.max_exact_error:.0e}", ratio(small, whole, seconds))


def stage_rows(names: Iterable[str]) -> Iterable[tuple[str, ...]]:
    """Layers and seconds by stage."""
    x = torch.randn(1, 3, 224, 224)
    for name in names:
        _, result = halved(name, x, shifts=True)
        seconds = result.report.seconds
        apart = sum(value for stage, value in seconds.items() if stage != "type check")
        stages = [seconds[stage] for stage in ("analysis", "cut", "comparison", "type check")]
        layers = len(result.report.layers)
        yield (name, str(layers), *(f"{value:.2f}" for value in (*stages, apart)), f"{1000 * apart / layers:.0f}")


@dataclass(frozen=True)
class Report:
    """A page of results.

    Attributes:
        about: what its figures are.
        headings: of its columns.
        tables: title -> what yields the rows, given the seconds that each latency takes.
    """

    about: str
    headings: tuple[str, ...]
    tables: dict[str, Callable[[float], Iterable[tuple[str, ...]]]]


REPORTS = {
    "latency": Report(
        "Latency (one thread) of the compact network over that of the masked one, and over that of two networks built "
        "directly: at the widths of the compact one, and at the number of living channels, which leaves out the "
        "channels that carry.",
        ("network", "float64 error", "carried", "over masked", "over same widths", "over living channels"),
        {"Latency": latency_rows},
    ),
    "rounding": Report(
        "Latency (one thread) of the compact network over that of the masked one, by the block to whose multiples the "
        "widths were rounded up with dead channels (`compress.compact(..., round_to=)`); 1: none.",
        ("network", "block", "MACs", "parameters", "float64 error", "latency over masked"),
        {"Rounding": rounding_rows},
    ),
    "seconds": Report(
        "Seconds from model to compact model, by stage, at 224x224. The type check captures the compact network again.",
        ("network", "layers", "analysis", "cut", "comparison", "type check", "all but type check", "ms a layer"),
        {
            "Networks": lambda _: stage_rows(STAGES),
            "Growth with depth": lambda _: stage_rows(GROWTH),
            "Networks of 28 to 306 million parameters": lambda _: stage_rows(LARGE),
        },
    ),
}


def main() -> None:
    """Print the tables of one report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", choices=REPORTS, help="what to measure")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    parser.add_argument("--min-seconds", type=float, default=4.0, help="of each latency (default: 4)")
    arguments = parser.parse_args()
    report = REPORTS[arguments.report]
    command = f"python experiments/surgery_speed.py {arguments.report}"
    page = Page(f"Speed of surgery: {arguments.report}", command, about(__doc__), report.about, environment())
    for title, rows in report.tables.items():
        page.table(report.headings, rows(arguments.min_seconds), title)
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
