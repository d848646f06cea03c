"""Against a real sshd on this machine, with the real ssh; see conftest.py for the aliases of the host."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.loading import load_report
from bench.protocol import Answer, Request
from bench.targets import find_target
from bench.targets.remote import RemoteTarget
from bench.targets.ssh import ssh_link, ssh_target

REQUEST = Request(
    measure="latency",
    models=(),
    threads=1,
    batch=None,
    shapes={},
    seed=0,
    min_seconds=0.0,
    min_samples=3,
    limit_seconds=30.0,
)
BOUND_S = 15.0  # for failures that need no waiting; on an idle machine each takes less than one second
SLEEPER = "import os, time, pathlib; pathlib.Path('started').write_text(str(os.getppid())); time.sleep(60)"


def run(address: str, model: Path | None = None, *, limit_s: float = 30.0, **settings: object) -> Answer:
    """One session of one request, by default of no models, as a worker of one's own answers it."""
    request = replace(REQUEST, models=() if model is None else (str(model),), limit_seconds=limit_s)
    with RemoteTarget(ssh_link(address), **settings).session(60.0) as session:  # type: ignore[arg-type]
        return session.run(request)


@contextmanager
def refused(message: str, bound_s: float = BOUND_S) -> Iterator[None]:
    """The block ends in time with this error, of one printable line."""
    start = time.monotonic()
    with pytest.raises(BenchError, match=message) as refusal:
        yield
    assert time.monotonic() - start < bound_s
    assert str(refusal.value).isprintable()


def script(tmp_path: Path, text: str) -> Path:
    worker = tmp_path / "worker.py"
    worker.write_text(text)
    return worker


def test_requests_share_a_connection_and_a_copy_in_a_private_folder(device, make_convs) -> None:
    model, other = make_convs("a.onnx"), make_convs("b.onnx", width=2)
    with ssh_target(device.address()).session(30.0) as session:
        answers = []
        for models in ((str(model), str(other)), (str(other), str(model))):
            answers.append(session.run(replace(REQUEST, models=models, batch=2)))
            (private,) = device.folder.iterdir()
            assert private.stat().st_mode & 0o777 == 0o700
            copies = {str(path.relative_to(private)): path for path in private.rglob("*") if path.is_file()}
            assert {"worker/worker.py", "models/0/model.onnx", "models/1/model.onnx"} < set(copies)
            assert copies["models/0/model.onnx"].read_bytes() == model.read_bytes()
            assert copies["models/1/model.onnx"].read_bytes() == other.read_bytes()
        assert len(device.clients()) == 1
    assert list(device.folder.iterdir()) == []
    for answer in answers:
        assert answer.host is not None
        assert [found.inputs[0].shape for found in answer.models] == [(2, 1, 8, 8)] * 2
        assert all(len(found.latency.samples_ns) == 3 for found in answer.models if found.latency is not None)


def test_bench_latency_and_memory_measure_the_device(device, make_convs, tmp_path, monkeypatch, capsys) -> None:
    plain, out = make_convs("small.onnx"), tmp_path / "report.json"
    model = tmp_path / 'we\'ird $(touch injected) \n"name".onnx'
    (tmp_path / "weights").mkdir()
    onnx.save(onnx.load(plain), model, save_as_external_data=True, location="weights/a b.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    for alias, cores, words in (
        ("localhost", len(os.sched_getaffinity(0)), ("latency", "--runs", 6, "--samples", 12, "--min-seconds", 0)),
        ("onecore", 1, ("memory", "--repeats", 1)),  # its server gives one core to this key
    ):
        name = f"ssh:{device.address(alias)}"
        argv = ["bench", words[0], model, *words[1:], "--device", name, "--json", out]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        with pytest.raises(SystemExit) as ending:
            main()
        assert not ending.value.code, capsys.readouterr().err
        report = load_report(out)
        assert report.device == name
        assert report.host.usable_cores == cores
        assert report.host.emulated is False
        assert report.model.file.file_bytes > model.stat().st_size
        assert device.is_clean()
        if words[0] == "latency":
            assert report.model.latency.samples >= 12
    assert len(device.clients()) == 2
    assert not list(tmp_path.rglob("injected"))


@pytest.mark.parametrize(
    "alias, message",
    [
        ("wrong-key", r"no session on ssh://wrong-key.*: .*Permission denied \(publickey\)"),
        ("stranger", "no session on ssh://stranger.*: Host key verification failed"),
        ("nologin", "no session on ssh://nologin.*: This account is currently not available"),
        ("full", "ssh://full.*: copying .*worker.py failed there: File too large"),
        ("no-tmp", "ssh://no-tmp.*: starting a session failed there: No usable temporary directory found"),
    ],
)
def test_a_device_that_cannot_serve_is_told_in_one_line(device, alias: str, message: str) -> None:
    with refused(message):
        run(device.address(alias))


def test_what_cannot_be_reached_is_told_with_a_command_to_try(device) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        by_hand = f"this must work without a question: ssh -p {port} localhost 'python3 --version'"
        with refused(f"Connection refused; {by_hand}"):
            run(f"//localhost:{port}")
    with refused("no session on ssh://no.such.host.invalid: .*"):
        run("//no.such.host.invalid")
    with refused("ssh://192.0.2.1"):  # of a net that nobody has; some routers answer, others do not
        run("//192.0.2.1", connect_s=1.0)


def test_a_server_that_says_nothing_is_given_up(device) -> None:
    with refused(r"ssh://silent\S* did not answer within 1 s; this must work without a question: ssh silent "):
        run(device.address("silent"), connect_s=1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with refused("did not answer within 1 s"):
            run(f"//localhost:{mute.getsockname()[1]}", connect_s=1.0)


def test_what_login_scripts_print_does_not_matter(device, make_convs) -> None:
    answer = run(device.address("noisy"), make_convs("a.onnx"))
    assert answer.models[0].latency is not None


def test_a_python_without_onnxruntime_is_told_with_what_installs_it(device, make_convs, tmp_path: Path) -> None:
    bare = tmp_path / "bare python"
    venv.create(bare, symlinks=True)
    missing = r"/bare python/bin/python\S* \(Python 3.* on ssh://localhost.* has no (numpy|onnxruntime)"
    with refused(rf"{missing}; install it: ssh localhost '.* -m pip install onnxruntime'"):
        run(f"//localhost?python={bare}/bin/python", make_convs("a.onnx"))


@pytest.mark.parametrize("python", ["/nowhere/python3", "$(touch injected)", "x; touch injected", "`touch injected` ~"])
def test_a_python_that_is_not_there_is_told_and_never_a_command(device, python: str) -> None:
    with refused("no session on ssh://localhost.*(not found|No such file).*"):
        run(f"//localhost?python={python}")
    assert not (Path.home() / "injected").exists()


def test_a_python_is_found_in_the_home(device) -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir
    with refused(f"no session on ssh://localhost.* {home}/none of bench/python: (not found|No such file)"):
        run("//localhost?python=~/none of bench/python")


@pytest.mark.parametrize(
    "text, message",
    [
        ("print('hello')", "worker's answer: expected JSON, got 'hello"),
        ("print('{}')", "expected a document of format 'bench-answer', got None"),
        ("", "worker's answer: expected JSON, got ''"),
        ("raise SystemExit('my \\033[31m words')", r"the worker ended with code 1; its last words: my \?\[31m words"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL .out of memory.."),
        ("import os; os.write(1, bytes(range(256)))", "expected JSON"),
        (
            "import os\nwhile True: os.write(1, bytes(1 << 20))",
            "running the worker failed there: .* more than 67108864",
        ),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "did not finish within 1 s and was stopped"),
        (f"import os\nif os.fork(): {SLEEPER}\nelse: time.sleep(60)", "did not finish within 1 s and was stopped"),
    ],
)
def test_whatever_the_worker_does_is_one_clear_error(device, tmp_path: Path, text: str, message: str) -> None:
    limit_s = 1.0 if "sleep" in text else 20.0
    with refused(message):
        run(device.address(), limit_s=limit_s, worker=script(tmp_path, text), startup_s=0.0)


def test_the_worker_reads_its_request_and_no_threads_of_the_shell(device, tmp_path: Path) -> None:
    text = "import json, os, sys; json.load(sys.stdin); sys.exit(f\"OMP {os.environ['OMP_NUM_THREADS']}\")"
    with refused("its last words: OMP 1"):
        run(device.address(), worker=script(tmp_path, text))


def cut(device, tmp_path: Path, kill: object) -> None:
    """Call `kill` with the agent's process id while a worker runs."""

    def when_started() -> None:
        assert device.wait_for_files("*/started")
        (started,) = device.folder.glob("*/started")
        assert device.wait(lambda: started.read_text() != "")
        kill(int(started.read_text()))  # type: ignore[operator]

    thread = threading.Thread(target=when_started)
    thread.start()
    with refused("ssh://localhost.*: the connection was lost while running the worker: .*the device removes what was"):
        run(device.address(), worker=script(tmp_path, SLEEPER))
    thread.join()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_client_that_is_killed_leaves_nothing(device, tmp_path: Path) -> None:
    cut(device, tmp_path, lambda _: os.kill(device.clients()[-1], signal.SIGKILL))


def test_a_server_that_is_killed_leaves_nothing(device, tmp_path: Path) -> None:
    cut(device, tmp_path, lambda agent: os.kill(parent(agent), signal.SIGKILL))


def test_an_agent_that_is_stopped_leaves_nothing(device, tmp_path: Path) -> None:
    cut(device, tmp_path, lambda agent: os.kill(agent, signal.SIGTERM))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_is_killed_leaves_nothing(device, make_convs, number: int) -> None:
    words = ["latency", str(make_convs("a.onnx")), "--device", f"ssh:{device.address()}", "--min-seconds", "60"]
    bench = subprocess.Popen([sys.executable, "-m", "bench", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert device.wait_for_files("*/request.json")
        bench.send_signal(number)
        _, stderr = bench.communicate(timeout=BOUND_S)
    finally:
        bench.kill()
    assert bench.returncode != 0
    assert b"Traceback" not in stderr
    assert device.wait(lambda: not Path(f"/proc/{device.clients()[-1]}/cwd").exists())


HOSTILE = [
    "",
    "localhost",
    "//",
    "///etc",
    "//-oProxyCommand=touch injected",
    "//-oProxyCommand=touch${IFS}injected",
    "//host -oProxyCommand=x",
    "//host;touch injected",
    "//$(touch injected)",
    "//`touch injected`",
    "//host\ntouch injected",
    "//host\n",
    "//host/../etc",
    "//host/",
    "//-l@host",
    "//-oProxyCommand=x@host",
    "//a b@host",
    "//$(id)@host",
    "//@host",
    "//user@@host",
    "//host:",
    "//host:22x",
    "//host:-1",
    "//host:22 -v",
    "//host:123456",
    "//[::1",
    "//[$(id)]",
    "//::1",
    "//host?",
    "//host?python",
    "//host?python=",
    "//host?python=-c",
    "//host?python=a'b",
    '//host?python=a"b',
    "//host?python=a\\b",
    "//host?python=a!b",
    "//host?python=a\nb",
    "//host?python=a\0b",
    "//host?port=22",
    "//höst",
]


@pytest.mark.parametrize("address", HOSTILE)
def test_an_address_that_is_none_is_refused_before_anything_starts(address: str) -> None:
    with pytest.raises(BenchError) as refusal:
        ssh_target(address)
    assert str(refusal.value).isprintable()
    assert "expected" in str(refusal.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    for password in ("secret", "sec/ret", "sec@ret", "sec?ret", ""):
        with pytest.raises(BenchError, match="passwords are not taken; copy a key") as refusal:
            find_target(f"ssh://user:{password}@host")
        assert "sec" not in str(refusal.value)
        assert "user" not in str(refusal.value)


def test_the_words_of_ssh() -> None:
    words = ssh_link("//me@board-1.local:2222?python=~/my venv/bin/python").command("code")
    assert words[0] == "ssh"
    assert words[-7:] == ["-p", "2222", "-l", "me", "--", "board-1.local", "exec ~/'my venv/bin/python' -c 'code'"]
    assert ssh_link("//[fe80::1%eth0]").words[-2:] == ("--", "fe80::1%eth0")
    assert ssh_link("//pi:22?python=/opt/python@3.11/python3").device == "ssh://pi:22?python=/opt/python@3.11/python3"
    assert ssh_link("//pi").command("code")[-2:] == ["pi", "exec python3 -c 'code'"]


def test_an_ssh_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused(r"cannot start ssh: No such file or directory; install the OpenSSH client \(apt-get install "):
        run("//host")


def test_weights_outside_of_the_models_folder_are_not_copied(device, make_convs, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 12))
    (tmp_path / "models").mkdir()
    model = tmp_path / "models" / "a.onnx"
    for location in ("../secret", str(tmp_path / "secret")):
        proto = onnx.load(make_convs("a.onnx"))
        for tensor in proto.graph.initializer:
            onnx.external_data_helper.set_external_data(tensor, location)
            tensor.ClearField("raw_data")
        model.write_bytes(proto.SerializeToString())
        with refused("keeps weights in .*secret', outside of its folder, and cannot be copied"):
            run(device.address(), model)


def test_a_model_is_named_as_here(device, tmp_path: Path) -> None:
    model = tmp_path / "bad.onnx"
    model.write_bytes(b"this is no protobuf")
    with refused(f"cannot load {model}: "):
        run(device.address(), model)
    with refused(f"{tmp_path / 'none.onnx'} cannot be read: No such file or directory"):
        run(device.address(), tmp_path / "none.onnx")


def test_a_disk_that_fills_up_is_told(device, tmp_path: Path, make_convs) -> None:
    model = tmp_path / "large.onnx"
    model.write_bytes(bytes(5_000_000))
    with refused(rf"ssh://nearly-full\S*: copying {model} failed there: File too large"):
        run(device.address("nearly-full"), model)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", device.folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk that is really full: needs the right to mount")
    try:
        with refused(rf"ssh://localhost\S*: copying {model} failed there: No space left on device"):
            run(device.address(), model)
        assert device.is_clean()
    finally:
        subprocess.run(["umount", device.folder], check=True)
