"""ONNX Runtime's own loop, as a user would write it, in turn with the harness's samples in one process.

    python experiments/loop_beside_harness.py 3 model.onnx > samples.json
    python experiments/loop_beside_harness.py 3 model.onnx baseline.onnx > samples.json

Some milliseconds of the one, some of the other, so that what the machine does meets both alike. Each has a session of
its own; with an odd first argument that of the loop is made first. With a baseline the harness measures that one too,
between its samples of the model.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from bench import worker

BLOCK, BLOCKS = 25, 80
SETTLING = 5
"""Inferences at the start of a block that do not count: the caches hold what the other one used."""

REQUEST = {"threads": 1, "provider": "CPUExecutionProvider", "batch": None, "shapes": {}, "seed": 0}


def own_session(path: str) -> onnxruntime.InferenceSession:
    """A session with one thread, all else as by default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def loop_block(session: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> list[int]:
    """The loop."""
    samples = []
    for _ in range(BLOCK):
        start = time.perf_counter_ns()
        session.run(None, feeds)
        samples.append(time.perf_counter_ns() - start)
    return samples[SETTLING:]


def harness_block(models: list[worker.Model]) -> list[int]:
    """Samples of the first model, taken as ``worker.measure_latency`` does: untimed ones between two models alone."""
    samples = []
    for _ in range(BLOCK):
        for model in reversed(models):
            if len(models) > 1:
                model.run()
            nanoseconds = worker.timed(model)
        samples.append(nanoseconds)
    return samples[SETTLING:]


def main() -> None:
    """Print both lists of nanoseconds as JSON."""
    turn, *paths = int(sys.argv[1]), *sys.argv[2:]
    early = own_session(paths[0]) if turn % 2 else None
    models = [worker.Model(path, REQUEST) for path in paths]
    for model in models:
        model.prepare()
        worker.warm_up(model)
    session = early or own_session(paths[0])
    rng = np.random.default_rng(0)
    feeds = {value.name: rng.standard_normal(value.shape).astype(np.float32) for value in session.get_inputs()}
    harness, loop = [], []
    for _ in range(BLOCKS):
        harness += harness_block(models)
        loop += loop_block(session, feeds)
    json.dump({"harness": harness, "loop": loop}, sys.stdout)


if __name__ == "__main__":
    main()
