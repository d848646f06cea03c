"""Who may import whom: the house plan in docs/architecture.md, held by a test."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Room -> what of this repository it may import (prefixes), besides itself. Imports for type checkers count as well.
ROOMS = {
    "compress/errors.py": set(),
    "compress/penalties": {"compress.errors"},
    "compress/graph": {"compress.errors"},
    "compress/groups.py": {"compress.errors", "compress.graph"},
    "compress/optim": {"compress.errors", "compress.groups", "compress.penalties"},
    "compress/surgery": {"compress.errors", "compress.files", "compress.graph"},
    "compress/pruning": {"compress.errors", "compress.graph", "compress.groups", "compress.surgery"},
    "compress/pruning/run.py": {"compress"},
    "compress/models": {"compress.errors", "compress.torchvision_compat"},
    "compress/data": {"compress.errors", "compress.torchvision_compat"},
    "compress/train": {"compress"},
    "compress/cli": {"compress"},
    "compress/__main__.py": {"compress.cli"},
    "compress/cli/export": {"compress", "export", "bench"},
    "export": set(),
    "bench": set(),
    "bench/__main__.py": {"bench.cli"},
}

# Third parties that a package must never need.
FORBIDDEN = {"bench": {"torch", "torchvision", "onnx", "compress", "export"}, "export": {"compress", "bench"}}

WORKER_MAY_IMPORT = {"numpy", "onnxruntime"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_plan_allows(room: str) -> None:
    own = room.removesuffix(".py").replace("/", ".")
    allowed = ROOMS[room] | {own}
    files = sources(room)
    assert files, f"{room} is empty"
    for path in files:
        relative = str(path.relative_to(ROOT))
        if any(other.startswith(room + "/") and Path(relative).is_relative_to(other) for other in ROOMS):
            continue  # a file or folder with a plan of its own
        for name in imports(path):
            if name.split(".")[0] in {"compress", "export", "bench", "tests", "experiments"}:
                assert any(name == a or name.startswith(a + ".") for a in allowed), f"{relative} imports {name}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_without_what_it_must_not_need(package: str) -> None:
    for path in sources(package):
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[package]}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_worker_is_one_self_contained_file() -> None:
    others = {name.split(".")[0] for name in imports(ROOT / "bench" / "worker.py")} - sys.stdlib_module_names
    assert others <= WORKER_MAY_IMPORT


def test_every_room_of_the_packages_has_a_plan() -> None:
    planned = {room.split("/")[0] + "/" + room.split("/")[1] for room in ROOMS if "/" in room}
    for path in (ROOT / "compress").iterdir():
        if path.name not in {"__init__.py", "__pycache__", "py.typed", "torchvision_compat.py", "files.py"}:
            assert f"compress/{path.name}" in planned, f"compress/{path.name} has no plan"
