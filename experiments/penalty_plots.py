"""Pictures of the penalties: what a magnitude costs, and what the proximal step makes of it.

    python experiments/penalty_plots.py --out docs/images

Every curve is computed by the classes of ``compress.penalties``. The penalties that look at a whole layer at once are
drawn for one magnitude beside three others (0.3, 0.6 and 1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from compress.penalties import PENALTIES, LayerwisePenalty, Penalty

SHOWN = {
    "l0": {},
    "l1": {},
    "lp": {"p": 0.5},
    "transformed-l1": {"a": 0.5},
    "log-sum": {"eps": 0.1},
    "mcp": {"a": 3.0},
    "scad": {"a": 3.7},
    "l1-over-l2": {},
    "hoyer": {},
}
"""Penalty -> shape parameters; the two lassos are ``l1`` on norms."""

STRENGTH, STEP = 0.5, 1.0
BESIDE = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
Z = torch.linspace(0, 2.5, 1001, dtype=torch.float64)
INK, LINE, GRID = "#2b2b2b", "#0b6e99", "#d9d9d9"


def cost(penalty: Penalty) -> Tensor:
    """What each magnitude of ``Z`` adds."""
    part = penalty.on_norms
    if isinstance(part, LayerwisePenalty):
        return torch.stack([part.value(torch.cat((z.reshape(1), BESIDE))).sum() for z in Z])
    return part.value(Z)


def shrunk(penalty: Penalty) -> Tensor:
    """What the proximal step makes of each magnitude of ``Z``."""
    part = penalty.on_norms
    if isinstance(part, LayerwisePenalty):
        return torch.stack([part.prox(torch.cat((z.reshape(1), BESIDE)), STEP)[0] for z in Z])
    return part.prox(Z, STEP)


def without_jumps(y: Tensor) -> Tensor:
    """NaN at each jump, so that no line is drawn across it."""
    y = y.clone()
    y[1:][y.diff().abs() > 0.1] = torch.nan
    return y


def figure(title: str, ylabel: str, draw_identity: bool, values: dict[str, Tensor], file: Path) -> None:
    """One small picture for each penalty, all at one scale."""
    mpl.rcParams.update({"font.size": 9, "svg.hashsalt": "penalties", "font.family": "DejaVu Sans"})
    columns = 3
    rows = -(-len(values) // columns)
    drawn, grid = plt.subplots(rows, columns, figsize=(7.5, 2.3 * rows), sharex=True, sharey=draw_identity)
    for axes, (name, y) in zip(grid.flat, values.items(), strict=True):
        panel(axes, name, y, draw_identity)
    for axes in grid[-1]:
        axes.set_xlabel("magnitude before" if draw_identity else "magnitude z")
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    drawn.suptitle(title, x=0.02, ha="left", fontsize=11, color=INK)
    drawn.tight_layout()
    drawn.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)
    plt.close(drawn)


def panel(axes: Axes, name: str, y: Tensor, draw_identity: bool) -> None:
    """One penalty."""
    shape = ", ".join(f"{key} = {value:g}" for key, value in SHOWN[name].items())
    axes.set_title(f"{name}   {shape}", loc="left", color=INK, fontsize=9)
    if draw_identity:
        axes.plot(Z, Z, color=GRID, linewidth=1)
    axes.plot(Z, without_jumps(y), color=LINE, linewidth=1.8)
    if name == "l0" and not draw_identity:
        axes.plot(0, 0, "o", color=LINE, markersize=4, clip_on=False)  # a magnitude of 0 costs nothing
    axes.set_xlim(0, 2.5)
    axes.set_xticks([0, 1, 2])
    axes.set_ylim(bottom=-0.08 if draw_identity else 0)
    axes.grid(color=GRID, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    penalties = {name: PENALTIES[name](STRENGTH, **shape) for name, shape in SHOWN.items()}
    setting = f"strength {STRENGTH:g}"
    figure(
        f"What a magnitude costs ({setting})",
        "cost",
        False,
        {name: cost(penalty) for name, penalty in penalties.items()},
        arguments.out / f"penalties.{arguments.format}",
    )
    figure(
        f"What the proximal step makes of it ({setting}, step {STEP:g}; grey: left as it is)",
        "after",
        True,
        {name: shrunk(penalty) for name, penalty in penalties.items()},
        arguments.out / f"proximal-steps.{arguments.format}",
    )


if __name__ == "__main__":
    main()
