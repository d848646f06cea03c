"""``killing.py SEED OUT NET``: train once undisturbed (``OUT/whole``), once killed at random moments (``OUT/killed``).

Trainings are forked children, so that torch is loaded once; the parent computes nothing with it, whose threads would
not survive the fork. Prints how many children were killed before they had ended.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from compress.train import loop
from compress.train.config import Config
from compress.train.recipe import resolve
from compress.train.session import train

KILLS = 6
LONGEST = 0.6
"""Until a child is killed, of the time that a whole training takes."""


def configuration(out: Path, net: str) -> Config:
    flags = {
        "model.name": net, "data.name": "digits", "data.limit": 200, "data.augment.pad": 1, "run.out": out,
        "penalty.name": "group-lasso", "penalty.strength": 0.2, "penalty.warmup_epochs": 0.5,
        "optimizer.lr": 0.05, "schedule.epochs": 3, "schedule.batch_size": 32, "schedule.lr_schedule": "cosine",
        "run.device": "cpu", "run.threads": 1, "run.curves": False,
    }  # fmt: skip
    return resolve(flags=flags)


def forked(config: Config) -> int:
    """Start or resume the training in a child; its process number."""
    process = os.fork()
    if process:
        return process
    loop.CHECKPOINT_INTERVAL_S = 0.0  # a checkpoint after every step, so that kills come amid the writing
    try:
        train(config, resume=(config.out / "config.toml").exists())
    except BaseException as error:  # whatever it is, this copy of the parent must end here
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(process: int) -> bool:
    """Whether the child has ended, which it must have done well."""
    number, status = os.waitpid(process, os.WNOHANG)
    if number and os.waitstatus_to_exitcode(status):
        sys.exit("a training failed")
    return bool(number)


def killed(config: Config, after_s: float) -> bool:
    """Let a child train for so long; whether it had not ended by then."""
    process, until_s = forked(config), time.monotonic() + after_s
    while not ended(process):
        if time.monotonic() > until_s:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.001)
    return False


def main(seed: int, out: Path, net: str) -> None:
    generator, start_s = random.Random(seed), time.monotonic()
    killed(configuration(out / "whole", net), after_s=1000.0)
    whole_s = time.monotonic() - start_s
    config = configuration(out / "killed", net)
    # none lives long enough to end, since every child spends some of its time on loading
    count = sum(killed(config, generator.uniform(0.0, LONGEST * whole_s)) for _ in range(KILLS))
    killed(config, after_s=1000.0)
    print(count)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
