"""The CPUs that QEMU emulates here, and what Linux tells about them.

QEMU's user mode leaves /proc/cpuinfo as this machine has it. ONNX Runtime picks kernels by the part that it finds there
(those for the narrow memory port of the Cortex-A53, for example), hence each CPU gets the file that its Linux shows.
"""

from dataclasses import dataclass

from bench.errors import BenchError

ARMV8_0 = ("fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
# The dot product of int8 (asimddp) and half precision (asimdhp) came with Armv8.2; both cores of that age have them.
ARMV8_2 = (
    *("fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid", "asimdrdm"),
    *("lrcpc", "dcpop", "asimddp"),
)


@dataclass(frozen=True)
class Cpu:
    """A CPU by QEMU's name.

    Attributes:
        part: Part number of MIDR_EL1; the implementer is Arm.
        variant: Major revision, of MIDR_EL1.
        revision: Minor revision, of MIDR_EL1.
        features: As /proc/cpuinfo names them; a test compares them with what QEMU tells the guest.
    """

    name: str
    part: int
    variant: int
    revision: int
    features: tuple[str, ...]

    def cpuinfo(self) -> str:
        """What /proc/cpuinfo shows on a machine with one such core."""
        return (
            "processor\t: 0\n"
            "BogoMIPS\t: 100.00\n"
            f"Features\t: {' '.join(self.features)}\n"
            "CPU implementer\t: 0x41\n"
            "CPU architecture: 8\n"
            f"CPU variant\t: {self.variant:#x}\n"
            f"CPU part\t: {self.part:#05x}\n"
            f"CPU revision\t: {self.revision}\n\n"
        )


CPUS = {
    cpu.name: cpu
    for cpu in (
        Cpu("cortex-a53", 0xD03, 0, 4, ARMV8_0),
        Cpu("cortex-a72", 0xD08, 0, 3, ARMV8_0),
        Cpu("cortex-a76", 0xD0B, 4, 1, ARMV8_2),
        Cpu("neoverse-n1", 0xD0C, 4, 1, ARMV8_2),
    )
}
DEFAULT_CPU = "cortex-a53"


def find_cpu(name: str) -> Cpu:
    """The CPU of ``--device arm64:name``; ``a53`` is short for ``cortex-a53``, nothing for the default.

    Raises:
        BenchError: QEMU may know the name, this table does not.
    """
    for full in (name, f"cortex-{name}") if name else (DEFAULT_CPU,):
        if full in CPUS:
            return CPUS[full]
    raise BenchError(f"unknown CPU {name!r} in --device arm64:{name}; known CPUs: {', '.join(CPUS)}")
