"""Instructions of an inference on emulated ARM CPUs: dense and compact, float32 and int8.

    bench devices setup arm64
    python experiments/arm64_instructions.py --markdown docs/results/arm64-instructions.md

`bench instructions` counts them. The networks are LeNet-5 for 28x28 grey images and ResNet-20 for 32x32 colour images,
not trained: half of the free channels of each are zeroed at random, and `compress.compact` removes them. What a kernel
executes does not depend on the values of weights. int8 is what `compress export --int8` makes, calibrated on random
images: activations of 8 bits, weights of 7, QuantizeLinear and DequantizeLinear around every layer.

"Outputs" is the largest difference of the outputs from those of this machine, on the same random image, as a share of
the largest output. MACs are multiplications with additions, of convolutions and linear layers, by the network's shapes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from page import Page, about

from bench.protocol import Request
from bench.targets.launch import WORKER, ask
from bench.targets.qemu.cpus import CPUS
from bench.targets.qemu.space import ENVIRONMENT, default_space

BENCH = Path(sys.executable).parent / "bench"
NETWORKS = {"lenet5": (1, 28, 28), "resnet20": (3, 32, 32)}
PRECISIONS = ("float32", "int8")
FORMS = ("dense", "compact")
MAIN_CPUS = ("cortex-a53", "cortex-a76")

# A line of QEMU's log: address and instruction, then its text, which QEMU 7.2 does not know for dot products.
TRANSLATED = re.compile(rb"^0x([0-9a-f]+):\s+([0-9a-f]{8})\s")
# Fixed bits and their value of SDOT and UDOT, by vector and by element: Arm Architecture Reference Manual, C7.2.
DOT_PRODUCTS = ((0x9FE0FC00, 0x0E809400), (0x9FC0F400, 0x0F80E000))

ONE_INFERENCE = Request(
    measure="outputs",
    models=(),
    threads=1,
    batch=None,
    shapes={},
    seed=0,
    min_seconds=0.0,
    min_samples=1,
    limit_seconds=60.0,
    emulated=True,
)
BUSY_PROCESSES = 2
REPEATS = 3


@dataclass(frozen=True)
class Files:
    """Where everything is kept: what is there is not made again."""

    scratch: Path

    def model(self, network: str, form: str, precision: str) -> Path:
        """An ONNX file."""
        return self.scratch / f"{network}-{form}-{precision}.onnx"

    def macs(self, network: str) -> dict[str, int]:
        """Multiplications with additions of both forms."""
        found: dict[str, int] = json.loads((self.scratch / f"{network}-macs.json").read_text())
        return found

    def build(self, network: str) -> None:
        """Write the four files of a network, the note of its MACs last."""
        note = self.scratch / f"{network}-macs.json"
        if not note.exists():
            from arm64_networks import write_networks  # torch, which nothing else here needs

            paths = {
                (form, precision): self.model(network, form, precision) for form in FORMS for precision in PRECISIONS
            }
            note.write_text(json.dumps(write_networks(network, NETWORKS[network], paths)))

    def count(self, model: Path, cpu: str, *, runs: int = 1, tag: str = "") -> dict[str, Any]:
        """The report of `bench instructions` on one file."""
        report = model.with_name(f"{model.stem}-{cpu}{tag}.json")
        if not report.exists():
            command = [BENCH, "instructions", model, "--device", f"arm64:{cpu}", "--json", report]
            subprocess.run([*command, "--runs", str(runs), "--samples", str(3 * runs)], check=True, capture_output=True)
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    def dot_products(self, model: Path, cpu: str) -> int:
        """How many SDOT and UDOT stand in the code that ran, each place counted once, from QEMU's log."""
        note = model.with_name(f"{model.stem}-{cpu}-dot-products.json")
        if not note.exists():
            log = note.with_suffix(".log")
            command = default_space().python(CPUS[cpu], ["-P", "-s", "-B", str(WORKER)])
            place = command.index("-cpu")
            command[place:place] = ["-d", "in_asm", "-D", str(log)]
            ask(command, replace(ONE_INFERENCE, models=(str(model),)), startup_s=180.0, environment=ENVIRONMENT)
            with log.open("rb") as lines:
                note.write_text(json.dumps(len(set(filter(None, map(dot_product, lines))))))
            log.unlink()
        return int(json.loads(note.read_text()))


def dot_product(line: bytes) -> bytes | None:
    """The address of a dot product in a line of QEMU's log."""
    found = TRANSLATED.match(line)
    if found is None:
        return None
    instruction = int(found[2], 16)
    return found[1] if any(instruction & mask == value for mask, value in DOT_PRODUCTS) else None


def per_inference(report: dict[str, Any]) -> int:
    """Median of the counts."""
    return int(report["model"]["instructions"]["per_inference"])


def parity(report: dict[str, Any]) -> str:
    """Largest difference of the outputs, as a share of the largest."""
    found = report["model"]["parity"]
    return f"{found['max_abs_error'] / found['largest_value']:.1e}"


def main_rows(files: Files) -> Iterator[tuple[str, ...]]:
    """Dense and compact of each network, precision and CPU."""
    for network in NETWORKS:
        macs = files.macs(network)
        for precision in PRECISIONS:
            for cpu in MAIN_CPUS:
                dense, compact = (files.count(files.model(network, form, precision), cpu) for form in FORMS)
                counts = [per_inference(dense), per_inference(compact)]
                yield (
                    *(network, precision, cpu, *(f"{count:,}" for count in counts), f"{counts[1] / counts[0]:.3f}"),
                    *(f"{macs['compact'] / macs['dense']:.3f}", parity(dense), parity(compact)),
                )


def int8_rows(files: Files) -> Iterator[tuple[str, ...]]:
    """float32 and int8 of the dense ResNet-20, with and without the instruction for dot products."""
    macs = files.macs("resnet20")["dense"]
    for cpu in CPUS:
        models = [files.model("resnet20", "dense", precision) for precision in PRECISIONS]
        float32, int8 = (files.count(model, cpu) for model in models)
        dot = f"{files.dot_products(models[1], cpu)}"
        counts = [per_inference(float32), per_inference(int8)]
        per_mac = [f"{macs / count:.2f}" for count in counts]
        yield (cpu, dot, *(f"{count:,}" for count in counts), f"{counts[1] / counts[0]:.3f}", *per_mac, parity(int8))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that do nothing but count."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def repeat_rows(files: Files) -> Iterator[tuple[str, ...]]:
    """The smallest network in several processes, with and without others that keep the machine busy."""
    model = files.model("lenet5", "dense", "float32")
    for processes in (0, BUSY_PROCESSES):
        with busy(processes):
            report = files.count(model, MAIN_CPUS[0], runs=REPEATS, tag=f"-busy{processes}")
        figures = report["model"]["instructions"]
        medians = [int(np.median(run["counts"])) for run in figures["runs"]]
        spread = (figures["high"] - figures["low"]) / figures["per_inference"]
        load = report["host"]["load_average_1min"]
        yield (f"{processes}", f"{load:.1f}", *(f"{median:,}" for median in medians), f"{spread:.2%}")


EXPLANATION = """
float32 costs the same everywhere: `FMLA` multiplies and adds four numbers, on every Armv8 CPU. int8 does not. Armv8.2
CPUs have `SDOT` and `UDOT` (`asimddp` in /proc/cpuinfo), one of which multiplies and adds sixteen bytes into four sums
of 32 bits. Without it ONNX Runtime has to widen: `SMULL` or `UMULL` make eight products of 16 bits, another instruction
adds them up in pairs. The code that ran holds dot products on the Cortex-A76 and the Neoverse-N1 and none on the
other two, and the counts fall into the same two groups. The sums are whole numbers of 32 bits in both ways, hence the
outputs are the same on all four CPUs; and the same as here, since weights of 7 bits saturate on no CPU.

Compact networks keep more of their instructions than of their MACs: narrow layers fill the blocks of the kernels less,
and what is done around the layers, the call from Python included, does not shrink. int8 adds to that: values are turned
into integers and back. Without dot products it does not pay for narrow networks: on the Cortex-A53 both compact ones
take more instructions in int8 than in float32. An int8 network is to be measured on the CPU that it is for.

Fewer instructions are no promise of time: a Cortex-A53 issues in order, a Cortex-A76 out of order, and neither memory
nor clock is emulated. Measure seconds on a board (`bench latency --device ssh://...`).
"""


def main() -> None:
    """Build, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("runs/arm64-instructions"), help="models and reports")
    parser.add_argument("--markdown", type=Path, help="write the page here too")
    options = parser.parse_args()
    files = Files(options.scratch)
    options.scratch.mkdir(parents=True, exist_ok=True)
    for network in NETWORKS:
        files.build(network)
    host = files.count(files.model("lenet5", "dense", "float32"), MAIN_CPUS[0])["host"]
    page = Page(
        "Instructions of an inference on emulated ARM CPUs",
        "make arm64-instructions",
        about(__doc__),
        f"onnxruntime {host['onnxruntime']}, numpy {host['numpy']} and Python {host['python']} for ARM64, one thread, "
        "under QEMU's user mode.",
    )
    tables: dict[str, tuple[tuple[str, ...], Callable[[Files], Iterator[tuple[str, ...]]]]] = {
        "Dense and compact": (
            ("network", "precision", "CPU", "dense", "compact", "ratio", "ratio of MACs", "outputs, dense", "compact"),
            main_rows,
        ),
        "int8 with and without dot products: ResNet-20, dense": (
            (
                "CPU",
                "`SDOT`, `UDOT` in the code that ran",
                "float32",
                "int8",
                "ratio",
                "MACs per instruction, float32",
                "int8",
                "outputs, int8",
            ),
            int8_rows,
        ),
        f"Repeatability: LeNet-5, dense, float32, {MAIN_CPUS[0]}, medians of {REPEATS} processes": (
            (
                *("processes that keep the machine busy", "load average before"),
                *(f"process {run + 1}" for run in range(REPEATS)),
                "spread of single inferences",
            ),
            repeat_rows,
        ),
    }
    for title, (headings, rows) in tables.items():
        page.table(headings, rows(files), title)
    for paragraph in EXPLANATION.strip().split("\n\n"):
        page.paragraph(*paragraph.splitlines())
    page.save(options.markdown)


if __name__ == "__main__":
    main()
