"""The action, the workflows and the examples of the documents: they parse, fit together, and their scripts run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.gate import load_gate_report

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = [*sorted((ROOT / ".github" / "workflows").glob("*.yml")), ROOT / "docs" / "examples" / "github-gate.yml"]
GITLAB = yaml.safe_load((ROOT / "docs" / "examples" / "gitlab-ci.yml").read_text())
OWN = {"bench", "compress", "export"}


def imported_by_bench() -> set[str]:
    """Third parties that the package imports, its worker included."""
    found: set[str] = set()
    for path in (ROOT / "bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - OWN


def step(name: str) -> dict:
    (found,) = (each for each in ACTION["runs"]["steps"] if each["name"] == name)
    return found


def installed(script: str) -> set[str]:
    """Names of the packages on the line that installs with constraints."""
    (line,) = (line for line in script.replace("\\\n", " ").splitlines() if "--constraint" in line)
    words = re.sub(r'--constraint "[^"]*"', "", line).replace('"', " ").split()
    return {word.partition("==")[0] for word in words if re.fullmatch(r"[a-z0-9]+(==\$version)?", word)} - {
        "pip",
        "install",
    }


def test_the_action_is_a_composite_one_whose_steps_name_their_shell() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for name, value in ACTION["inputs"].items():
        assert value["description"], name
        assert value.get("required") or "default" in value, name
    for each in ACTION["runs"]["steps"]:
        assert each["shell"] == "bash"
        assert "${{" not in each["run"]  # inputs are variables, so that a file's name cannot become a command
    ids = {each.get("id") for each in ACTION["runs"]["steps"]}
    for output in ACTION["outputs"].values():
        (used,) = re.findall(r"steps\.(\w+)\.outputs", output["value"])
        assert used in ids


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_with_pinned_actions_and_few_rights(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert True in workflow  # YAML 1.1 reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 30
        for each in job["steps"]:
            assert ("run" in each) != ("uses" in each)
            used = each.get("uses", "./")
            assert used == "./" or "@" in used
            if (used == "./" and "uses" in each) or "edge-compress" in used:
                given = each["with"]
                assert given.keys() <= ACTION["inputs"].keys()
                assert {name for name, value in ACTION["inputs"].items() if value.get("required")} <= given.keys()


def test_the_ready_workflow_runs_on_x86_and_arm_with_files_that_are_there() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "gate.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    (gate,) = (each for each in job["steps"] if each.get("uses") == "./")
    assert (ROOT / gate["with"]["budget"]).is_file()
    assert "make demo" in [each.get("run") for each in job["steps"]]


def test_action_and_gitlab_install_what_bench_imports() -> None:
    needed = imported_by_bench()
    assert installed(step("Install bench")["run"]) == needed
    assert installed(GITLAB[".gate"]["before_script"][0]) == needed


def test_gitlab_reads_the_junit_file_that_the_gate_writes() -> None:
    template = GITLAB[".gate"]
    (script,) = template["script"]
    assert f"--junit {template['artifacts']['reports']['junit']}" in script
    for name in template["artifacts"]["paths"]:
        assert name in script + " ".join(template["after_script"])
    jobs = {name: job for name, job in GITLAB.items() if job and isinstance(job, dict) and "extends" in job}
    assert len(jobs) == 2
    for job in jobs.values():
        assert job["extends"] in GITLAB
        assert "BUDGET" in job["variables"]


def test_the_actions_script_gates(make_convs, tmp_path: Path) -> None:
    """The step as a runner calls it, with a model over budget whose name is hostile, and bench of this environment."""
    model = make_convs("a.onnx").rename(tmp_path / "-$(touch hacked) model.onnx")
    budget = tmp_path / "budget.toml"
    budget.write_text("[file]\nbytes = 10\n")
    temp = tmp_path / "temp dir"
    (temp / "bench" / "bin").mkdir(parents=True)
    program = temp / "bench" / "bin" / "bench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bench "$@"\n')
    program.chmod(0o755)
    files = {name: tmp_path / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    given = {"MODEL": model.name, "BUDGET": str(budget), "BASELINE": "", "DEVICE": "cpu", "RUNNER_TEMP": str(temp)}
    environment = {**os.environ, **given, "PYTHONPATH": str(ROOT), **{name: str(path) for name, path in files.items()}}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("Gate")["run"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    assert outputs["exit-code"] == "1"
    folder = Path(outputs["folder"])
    assert sorted(path.name for path in folder.iterdir()) == ["gate.html", "gate.json", "gate.md", "gate.xml"]
    assert files["GITHUB_STEP_SUMMARY"].read_text() == (folder / "gate.md").read_text()
    assert load_gate_report(folder / "gate.json").exit_code == 1
    assert not (tmp_path / "hacked").exists()
