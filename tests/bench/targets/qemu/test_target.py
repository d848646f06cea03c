"""What runs under QEMU needs ``bench devices setup arm64``, and is skipped elsewhere."""

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.gate import load_gate_report
from bench.gate.evidence import Evidence, facts_of
from bench.gate.judge import check
from bench.protocol import Request
from bench.targets import find_target
from bench.targets.qemu.cpus import CPUS, find_cpu
from bench.targets.qemu.space import ENVIRONMENT, Space, default_space
from bench.targets.qemu.target import REFUSALS, QemuTarget

REQUEST = Request(
    measure="instructions",
    models=("small.onnx", "dense model.onnx"),
    threads=1,
    batch=None,
    shapes={},
    seed=0,
    min_seconds=0.0,
    min_samples=1,
    limit_seconds=30.0,
)
needs_space = pytest.mark.skipif(
    not default_space().counter.exists(), reason="needs the ARM64 user space: bench devices setup arm64"
)

# Bits of AT_HWCAP and AT_HWCAP2 of AArch64 Linux, from its <asm/hwcap.h>.
HWCAP = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid"),
    *("asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm"),
    *("dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
)
AT_HWCAP = 16


@pytest.mark.parametrize(
    ("address", "name"),
    [("", "cortex-a53"), ("cortex-a76", "cortex-a76"), ("a72", "cortex-a72"), ("neoverse-n1", "neoverse-n1")],
)
def test_the_address_names_a_cpu(address: str, name: str) -> None:
    assert find_cpu(address).name == name


@pytest.mark.parametrize("address", ["m4", "cortex-m4", "a53,sve=on", "n1"])
def test_other_cpus_are_refused_with_the_list(address: str) -> None:
    with pytest.raises(
        BenchError, match=f"unknown CPU '{address}' in --device arm64:{address}; known CPUs: cortex-a53, "
    ):
        find_target(f"arm64:{address}")


@pytest.mark.parametrize("measure", REFUSALS)
def test_emulated_seconds_and_memory_are_refused_with_the_next_command(measure: str, tmp_path: Path) -> None:
    target = QemuTarget("a76", Space(tmp_path / "none"))
    with pytest.raises(BenchError) as caught:
        target.run(replace(REQUEST, measure=measure))
    assert str(caught.value).startswith(f"--device arm64 cannot measure {measure}: ")
    assert str(caught.value).endswith(
        "bench instructions small.onnx --baseline 'dense model.onnx' --device arm64:cortex-a76"
    )


def test_a_space_that_is_not_built_or_lacks_its_plugin_is_told(tmp_path: Path) -> None:
    target = QemuTarget("", Space(tmp_path / "arm64"))
    with pytest.raises(BenchError, match=r"not set up; build it once: bench devices setup arm64"):
        target.run(REQUEST)
    (tmp_path / "arm64").mkdir()
    with pytest.raises(BenchError, match=r"not built: install a C compiler .*, then: bench devices setup arm64"):
        target.run(REQUEST)


@needs_space
@pytest.mark.parametrize("name", CPUS)
def test_cpuinfo_lists_what_qemu_tells_the_guest(name: str) -> None:
    script = "import sys; sys.stdout.buffer.write(open('/proc/self/auxv', 'rb').read())"
    command = default_space().python(CPUS[name], ["-I", "-S", "-c", script])
    auxv = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True).stdout
    bits = dict(struct.iter_unpack("<QQ", auxv))[AT_HWCAP]
    assert set(CPUS[name].features) == {flag for place, flag in enumerate(HWCAP) if bits >> place & 1}


BUDGET = """
[instructions]
per_inference = 1_000_000_000
[file]
bytes = 1_000_000
[measure]
threads = 3  # of times; instructions are counted on one
instruction_runs = 2
instruction_samples = 4
"""


@needs_space
def test_the_gate_counts_what_repeats_in_another_process_and_outputs_agree(
    make_convs, tmp_path: Path, bench_command
) -> None:
    path = make_convs("with, comma.onnx", width=8, depth=2, size=16)
    budget, out, summary = tmp_path / "budget.toml", tmp_path / "gate.json", tmp_path / "gate.md"
    budget.write_text(BUDGET)
    words = ("--budget", budget, "--device", "arm64:a76", "--json", out, "--markdown", summary)
    assert bench_command("gate", path, *words) == 0
    gated = load_gate_report(out)
    report = gated.instructions
    assert report is not None
    assert report.host.emulated
    assert (report.host.cpu_model, report.host.architecture) == ("Cortex-A76", "aarch64")
    assert report.host.isa == ("asimd", "asimdhp", "asimddp")
    figures = report.model.instructions
    first, second = (run.counts for run in figures.runs)
    assert len(first) == len(second) == 2
    assert figures.spread <= 0.01
    # 16x16 pixels, 8 channels out, 9 of them and 72 multiplications each: at most 4 float32 in an instruction.
    least = 16 * 16 * 8 * (9 + 72) / 4
    assert figures.per_inference > least
    assert report.model.parity.max_abs_error <= 1e-5 * report.model.parity.largest_value
    counted, size = gated.checks
    assert (counted.low, counted.value, counted.high) == (figures.low, figures.per_inference, figures.high)
    assert (counted.verdict, size.verdict) == ("within", "within")
    assert "Cortex-A76, aarch64, emulated, 1 of " in summary.read_text()
    evidence = Evidence(model=facts_of(path), baseline=None, latency=None, memory=None, instructions=report)
    assert check("instructions.per_inference", least, evidence).verdict == "over"
