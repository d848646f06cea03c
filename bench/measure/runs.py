"""Several requests to one target, within one time limit."""

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from bench.errors import BenchError
from bench.measure.parity import check_outputs
from bench.onnx_file import OnnxFile, describe
from bench.protocol import Answer, Host, Input, MeasuredModel, Request
from bench.report import Settings
from bench.targets import find_target

LONGEST_S = 1e6  # eleven days; the system's waiting takes no more than twice as many
IDLE_LOAD = 0.5  # a desktop or the end of the previous command; a whole busy process is 1

Progress = Callable[[int, int], None]  # runs done, runs in all


class Advise(Protocol):
    """Says how to measure again with other values of some options, in the words of who asked."""

    def __call__(self, **changed: int | str) -> str:
        """One clause: call_again(runs=30) is ``measure again with runs=30``."""


def call_again(**changed: int | str) -> str:
    """In the words of Python."""
    return "measure again with " + ", ".join(f"{name}={value}" for name, value in changed.items())


def request_of(measure: str, models: tuple[str, ...], settings: Settings) -> Request:
    """A request for one of ``settings.runs`` processes; its share of the samples is left to the measure."""
    return Request(
        measure=measure,
        models=models,
        threads=settings.threads,
        batch=settings.batch,
        shapes=settings.shapes,
        seed=settings.seed,
        min_seconds=settings.min_seconds / settings.runs,
        min_samples=-(-settings.min_samples // settings.runs),
        limit_seconds=0.0,
        pin=settings.pin,
        provider=settings.provider,
    )


def require_time(timeout_s: float) -> None:
    """Refuse a time limit that is none.

    Raises:
        BenchError: It is 0, negative, infinite or no number.
    """
    if not 0 < timeout_s <= LONGEST_S:
        raise BenchError(f"timeout is {timeout_s:g} s, expected more than 0 and at most {LONGEST_S:,.0f}")


def answers(
    device: str,
    requests: Sequence[Request],
    timeout_s: float,
    progress: Progress | None,
    tolerance: float | None = None,
) -> Iterator[Answer]:
    """Answers in the order of the requests, each given an equal share of the time that is left.

    Behind the first answer, the models' outputs on the device are compared with this machine's.

    Raises:
        BenchError: The device is unknown, the target failed, the time is over, or a model computes something else there
            than here, by more than `tolerance` (see ``bench/measure/parity.py``).
    """
    require_time(timeout_s)
    total = len(requests)
    deadline = time.monotonic() + timeout_s
    with find_target(device).session(timeout_s) as session:
        for done, request in enumerate(requests):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise BenchError(
                    f"only {done} of {total} processes were done in {timeout_s:.0f} s; "
                    "give a longer --timeout or fewer --samples"
                )
            answer = session.run(replace(request, limit_seconds=left_s / (total - done)))
            if len(answer.models) != len(request.models):
                raise BenchError(
                    f"worker's answer: {len(answer.models)} models, asked for {len(request.models)}; "
                    "the worker is not the one of this bench"
                )
            if done == 0:
                check_outputs(session, device, requests, max(1.0, deadline - time.monotonic()), tolerance)
            yield answer
            if progress is not None:
                progress(done + 1, total)


def each_alone(
    measure: str,
    models: Sequence[str],
    files: Sequence[OnnxFile],
    device: str,
    settings: Settings,
    timeout_s: float,
    progress: Progress | None,
    tolerance: float | None = None,
) -> list[list[Answer]]:
    """Run each model alone in ``settings.runs`` processes, the models in turns; the answers of each model's processes.

    Raises:
        BenchError: See `answers`; or a model is no longer the one of `files`.
    """
    requests = [request_of(measure, (path,), settings) for _ in range(settings.runs) for path in models]
    found = list(answers(device, requests, timeout_s, progress, tolerance))
    require_unchanged(files, models)
    return [found[place :: len(models)] for place in range(len(models))]


def models_of(answers: Iterable[Answer]) -> list[MeasuredModel]:
    """What the processes found out, one after the other."""
    return [measured for answer in answers for measured in answer.models]


def require_unchanged(before: Sequence[OnnxFile], paths: Sequence[str]) -> None:
    """Refuse figures of which nobody can say which file they belong to.

    Raises:
        BenchError: A model file is another than before the first run.
    """
    for file, path in zip(before, paths, strict=True):
        if describe(Path(path)) != file:
            raise BenchError(f"{path} changed while it was measured; measure again")


def host_doubts(settings: Settings, host: Host) -> list[str]:
    """What about the machine makes times doubtful."""
    found = []
    threads, cores = settings.threads, host.usable_cores
    own = len(settings.pin) or cores
    if threads > own:
        found.append(f"{threads} threads share {own} cores: run with --threads {own}")
    if busy(settings, host):
        found.append(
            f"other processes were running: load average {host.load_average_1min:.1f} before the start, and "
            f"{threads} of {cores} cores needed; stop them (see: top), then run the same command"
        )
    return found


def busy(settings: Settings, host: Host) -> bool:
    """Whether other processes ran before the start that left too few cores."""
    load = host.load_average_1min
    return load is not None and load + settings.threads > host.usable_cores + IDLE_LOAD


def fallen_back(measured: Iterable[tuple[OnnxFile, Sequence[MeasuredModel]]]) -> tuple[str, ...]:
    """Which models run in part on another provider than the one asked for; of each, what the first process said."""
    found = []
    for file, (first, *_) in measured:
        nodes = first.nodes_by_provider or {}
        others = {name: count for name, count in nodes.items() if name != first.provider}
        found += [
            f"{file.file_name}: {count} of {sum(nodes.values())} nodes run on {name}, since {first.provider} does not "
            "take them; see which: bench profile"
            for name, count in others.items()
        ]
    return tuple(found)


def assumed_sizes(measured: Iterable[tuple[OnnxFile, Sequence[Input]]]) -> tuple[str, ...]:
    """Which inputs were run with sizes of 1 that nobody gave."""
    return tuple(
        f"{file.file_name} leaves sizes of its input {value.name} open, and ran with 1 in their place: "
        f"{'x'.join(map(str, value.shape))}; give them: --shape {shlex.quote(value.name)}=1,3,224,224, for example"
        for file, inputs in measured
        for value in inputs
        if value.assumed
    )


def host_of(answer: Answer) -> Host:
    """The host of an answer without error.

    Raises:
        BenchError: The worker left it out.
    """
    if answer.host is None:
        raise BenchError("worker's answer: host is missing; the worker is not the one of this bench")
    return answer.host


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
