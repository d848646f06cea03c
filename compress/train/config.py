"""What a training run is made of: the sections and keys of a recipe, with their defaults and limits.

Every value is checked by itself, so that one validation finds all faults (``recipe.resolve`` prints them together).
Names are checked against the tables that give them meaning; those are imported only when a name has to be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress.errors import ConfigError

NO_PENALTY = "none"
SHAPES = ("p", "a", "eps", "l1_share")
"""Keys of the shape parameters that penalties have."""

DENSE_TEACHER = "dense"
"""The teacher that is the dense network a run is compared with, or comes from."""

HARD_CONCRETE = "hard-concrete"
"""Stochastic gates in place of a penalty (see ``compress.optim.gates``)."""


def _datasets() -> Iterable[str]:
    from compress.data import DATASETS, FOLDER

    return [*DATASETS, FOLDER]


def _penalties() -> Iterable[str]:
    from compress.penalties import PENALTIES

    return [*PENALTIES, HARD_CONCRETE, NO_PENALTY]


def _granularities() -> Iterable[str]:
    from compress.groups import GRANULARITIES

    return GRANULARITIES


def _group_weights() -> Iterable[str]:
    from compress.optim.regularizer import GROUP_WEIGHTS

    return GROUP_WEIGHTS


def _optimizers() -> Iterable[str]:
    from compress.train.optimizers import OPTIMIZERS

    return OPTIMIZERS


def _lr_schedules() -> Iterable[str]:
    from compress.train.schedule import LR_SCHEDULES

    return LR_SCHEDULES


def _strength_schedules() -> Iterable[str]:
    from compress.train.schedule import STRENGTH_SCHEDULES

    return STRENGTH_SCHEDULES


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _one_of(known: Callable[[], Iterable[str]], *forms: str) -> AfterValidator:
    """Accept a name of the table ``known()``; ``forms`` are other ways to write one, told when the name is refused."""

    def check(name: str) -> str:
        names = list(known())
        if name not in names:
            raise ValueError(f"unknown name; known: {', '.join([*names, *forms])}")
        return name

    return AfterValidator(check)


def _model_name(name: str) -> str:
    """Accept a name of ``MODELS``, a library's name, or a factory in a file (whose path is made absolute)."""
    from compress.models import FORMS, LIBRARIES, MODELS
    from compress.models.from_file import EXPECTED

    if name.startswith(tuple(LIBRARIES)):
        return name
    file, colon, factory = name.rpartition(":")
    if name.endswith(".py"):
        raise ValueError(EXPECTED)
    if colon and file.endswith(".py"):
        if not Path(file).expanduser().is_file():
            raise ValueError(f"there is no file {file}")
        return f"{_absolute(Path(file))}:{factory}"
    if name not in MODELS:
        raise ValueError(f"unknown model; known: {', '.join([*MODELS, *FORMS])}")
    return name


def _dataset_name(name: str) -> str:
    """Accept a name of ``DATASETS`` or a folder of images (whose path is made absolute).

    Whether an absolute path, as saved recipes have it, is there still matters only to what reads the images.
    """
    from compress.data import FOLDER
    from compress.data.folder import LAYOUT

    names = list(_datasets())
    if name in names:
        return name
    folder = _absolute(Path(name))
    if not (folder.is_dir() or Path(name).is_absolute()):
        raise ValueError(
            f"no data set of that name; nor is there a folder {folder} ({LAYOUT}; {FOLDER} takes the one in data.dir); "
            f"known: {', '.join(names)}"
        )
    return str(folder)


def _teacher(name: str) -> str:
    """Accept ``dense``, or a run directory (made absolute); whether it is one matters only to a run that starts."""
    return name if name == DENSE_TEACHER else str(_absolute(Path(name)))


def _to_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_to_path), AfterValidator(_absolute)]


def _is_weights(path: Path) -> Path:
    """Accept an ending that says how to read the file; whether it is there matters only to a run that starts."""
    from compress.models.weights import READERS

    if path.suffix not in READERS:
        raise ValueError(f"expected a file that ends in {', '.join(READERS)}")
    return path


Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of a recipe: exact types, no unknown keys, never changed after it was checked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSection(Section):
    """``[model]``: the network.

    Attributes:
        name: A name of ``compress.models.MODELS``, ``torchvision:NAME``, ``timm:NAME``, or ``path/file.py:factory``.
        weights: A file to start from (see ``compress.models.weights``); by default weights are drawn from the seed.
        new_head: Draw the last layer anew, where the file has it for another number of classes.
    """

    name: Annotated[str, AfterValidator(_model_name)]
    weights: Annotated[FilePath, AfterValidator(_is_weights)] | None = None
    new_head: bool = False

    @field_validator("new_head")
    @classmethod
    def _has_an_old_one(cls, new_head: bool, info: ValidationInfo) -> bool:
        if new_head and info.data.get("weights", cls) is None:
            raise ValueError("without model.weights the whole network is new; leave it out")
        return new_head


class AugmentSection(Section):
    """``[data.augment]``: random changes of training images.

    Attributes:
        pad: Pixels of zeros around the image before a random crop to its size; 0 leaves the image where it is.
        flip: Mirror half of the images left to right.
        brightness, contrast, saturation: Each image's factor lies between 1 minus and 1 plus this; 0.4 is usual.
        hue: Each image's colours turn by up to this share of the colour circle, either way.
        cutout: Side in pixels of a square that is erased in each image.
        mixup: Images and labels are mixed in pairs, with shares from Beta(mixup, mixup); 0.2 is usual, 0 mixes none.
    """

    pad: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: NotNegative = 0.0


class DataSection(Section):
    """``[data]``: the images.

    Attributes:
        name: A name of ``compress.data.DATASETS``, or a folder of images by class (``folder``: the one in ``dir``).
        dir: Where the named data sets are kept.
        download: Fetch a named data set that is not in ``dir``.
        image_size: Height and width in pixels that images are brought to; by default the data set's own.
        validation_share: Share of the training images that is held out to judge by while training.
        limit: Use at most this many images of the training set.
        memory_gib: What the images of a folder may take in memory; by default a quarter of the machine's. What takes
            more is read from its files in every epoch, with the same result.
        workers: Processes that do so; by default one for each core, up to 8. 0 reads in the training process.
        augment: Random changes of training images.
    """

    name: Annotated[str, AfterValidator(_dataset_name)]
    dir: FilePath | None = None
    download: bool = False
    image_size: PositiveInt | None = None
    validation_share: Share = 0.1
    limit: PositiveInt | None = None
    memory_gib: NotNegative | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    augment: AugmentSection = AugmentSection()


class BudgetSection(Section):
    """``[penalty.budget]``: the size that training is to end at (see ``compress.train.budget``).

    Attributes:
        measure: What is counted: ``macs``, ``params`` or ``bytes`` (float32) of the network without its dead channels,
            or the penalty's ``groups``.
        target: Below 1 the share of it that stays, else a number.
        floor: Groups that every layer keeps.
    """

    measure: Literal["macs", "params", "bytes", "groups"] = "macs"
    target: Positive
    floor: PositiveInt = 1


class PenaltySection(Section):
    """``[penalty]``: what drives channels to exact zeros.

    Attributes:
        name: A name of ``compress.penalties.PENALTIES``, ``hard-concrete``, or ``none``.
        granularity: A name of ``compress.groups.GRANULARITIES``: which weights live and die together.
        strength: Factor of the penalty in the objective.
        p, a, eps, l1_share: Shape parameters of the penalties that have them; by default the penalty's own. Without a
            penalty they do nothing.
        mode: ``prox``: a proximal step after each optimizer step; ``subgradient``: added to the gradient before it.
        group_weights: A name of ``compress.optim.regularizer.GROUP_WEIGHTS``: how groups of different size are
            weighted; by default the penalty's own way, and with a budget by what it counts, so that what leaves first
            is what is worth least for its price.
        strength_schedule: A name of ``compress.train.schedule.STRENGTH_SCHEDULES``: how the strength moves
            after the warm-up.
        warmup_epochs: Epochs over which the strength rises linearly from zero.
        epochs: Epochs with the penalty, not more than all. After them dead groups stay dead and the rest trains on
            without it; by default the penalty stays to the end, or with a budget for half of all epochs.
        gate_lr_factor: Learning rate of hard-concrete gates over that of the weights.
        budget: Corrects the strength on the way, so that training ends at a given size.
        compact_every: Epochs from one compaction to the next; 0 for none before the end. A compaction takes out of the
            network what is dead, so that the following epochs are shorter; what has left cannot come back.
    """

    name: Annotated[str, _one_of(_penalties)] = "l0"
    granularity: Annotated[str, _one_of(_granularities)] = "coupled"
    strength: NotNegative = 1e-4
    p: float | None = None
    a: float | None = None
    eps: float | None = None
    l1_share: float | None = None
    mode: Literal["prox", "subgradient"] = "prox"
    group_weights: Annotated[str, _one_of(_group_weights)] | None = None
    strength_schedule: Annotated[str, _one_of(_strength_schedules)] = "constant"
    warmup_epochs: NotNegative = 0.0
    epochs: PositiveInt | None = None
    compact_every: Annotated[int, Field(ge=0)] = 0
    gate_lr_factor: Positive = 10.0
    budget: BudgetSection | None = None

    def shape(self) -> dict[str, float]:
        """The shape parameters that are given."""
        from compress.penalties import PENALTIES

        given = {key: getattr(self, key) for key in PENALTIES[self.name].shape_parameters()}
        return {key: value for key, value in given.items() if value is not None}

    @field_validator(*SHAPES)
    @classmethod
    def _shapes(cls, value: float | None, info: ValidationInfo) -> float | None:
        from compress.penalties import PENALTIES

        name, key = info.data.get("name"), info.field_name  # the name is absent when it is itself at fault
        if value is not None and name == HARD_CONCRETE:
            raise ValueError(f"{name} has no such parameter; leave it out")
        if value is None or key is None or name not in PENALTIES:
            return value
        known = ", ".join(PENALTIES[name].shape_parameters())
        if key not in known.split(", "):
            raise ValueError(f"{name} has no such parameter; " + (f"it has: {known}" if known else "leave it out"))
        try:
            PENALTIES[name](0.0, **{key: value})
        except ConfigError as error:
            raise ValueError(str(error).rpartition(", ")[2].removesuffix(".")) from error
        return value

    @field_validator("mode")
    @classmethod
    def _acts(cls, mode: str, info: ValidationInfo) -> str:
        from compress.penalties import PENALTIES

        name = info.data.get("name")  # absent when the name itself is at fault
        if mode == "subgradient" and name in PENALTIES and not PENALTIES[name].pulls:
            raise ValueError(f'the derivative of {name} is 0: it acts through mode "prox" alone')
        return mode


class OptimizerSection(Section):
    """``[optimizer]``: the update rule.

    Attributes:
        name: A name of ``compress.train.optimizers.OPTIMIZERS``.
        lr: Learning rate before the schedule's factor.
        momentum: By default the optimizer's usual one; refused where it has none.
        weight_decay: Factor of the squared norm's gradient, added to the loss's.
    """

    name: Annotated[str, _one_of(_optimizers)] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: NotNegative = 0.0

    @field_validator("momentum")
    @classmethod
    def _has_momentum(cls, momentum: float | None, info: ValidationInfo) -> float | None:
        from compress.train.optimizers import OPTIMIZERS

        name = info.data.get("name")  # absent when the name itself is at fault
        if momentum is not None and name is not None and OPTIMIZERS[name].default_momentum is None:
            raise ValueError(f"{name} has no such key; leave it out")
        return momentum


class ScheduleSection(Section):
    """``[schedule]``: how long, and how the learning rate moves.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr_schedule: A name of ``compress.train.schedule.LR_SCHEDULES``.
        warmup_epochs: Epochs over which the learning rate rises linearly from zero.
        label_smoothing: Share of each label that is spread evenly over all classes; 0.1 is usual.
        patience: End when the validation accuracy has not risen for so many epochs, and keep the network of the best
            one. Epochs count from the penalty's end on: before it accuracy falls because channels die. By default all
            epochs are trained and the last network is kept.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 64
    lr_schedule: Annotated[str, _one_of(_lr_schedules)] = "constant"
    warmup_epochs: NotNegative = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    patience: PositiveInt | None = None


class AverageSection(Section):
    """``[average]``: a moving average of the weights is judged, and kept, in their place (``compress.train.average``).

    Attributes:
        decay: What a step leaves of the average; about the last ``1 / (1 - decay)`` steps count.
    """

    decay: Share = 0.999


class DistillSection(Section):
    """``[distill]``: learn from the answers of another network too (see ``compress.train.distill``).

    Attributes:
        teacher: ``dense``, for the network of ``run.dense_baseline``, or, when a run is fine-tuned, for the dense one
            that it comes from; or the directory of another run on the same data set.
        temperature: By which both networks' logits are divided.
        weight: Of the teacher's term in the loss; that of the labels' is one minus it.
    """

    teacher: Annotated[str, Field(min_length=1), AfterValidator(_teacher)]
    temperature: Positive = 4.0
    weight: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.5


class RunSection(Section):
    """``[run]``: the circumstances.

    Attributes:
        seed: Of the starting weights, the split, the order of images and their augmentation.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one.
        threads: CPU threads of one operation; by default torch's choice, or fewer where the process may use fewer
            cores. Beside other busy processes one is often the fastest.
        channels_last: Lay images out pixel by pixel while training; ``auto``: where that was measured to be faster (see
            ``compress.train.execution``). Sums are rounded otherwise.
        precision: ``bfloat16``: operations that are safe in it (autocast) compute so while training, on hardware that
            has it; weights, the optimizer and the penalty stay float32.
        compile: Train through ``torch.compile``: minutes at the start, and faster steps for some networks.
        out: The run directory; by default ``runs/MODEL-DATASET-PENALTY``.
        dense_baseline: First train the same recipe without penalty, into ``out/dense``, for a figure to compare with.
        round_to: Leave dead channels in the compact network until the width of every layer is a multiple of this, or
            what it was: 8, or 16 on processors with AVX-512, is often much faster than fewer channels.
        tensorboard: Write event files for TensorBoard, where it is installed, into ``out/tensorboard``.
        curves: At the end draw accuracy, strength and widths over the epochs, where matplotlib is installed.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    channels_last: Literal["auto"] | bool = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    out: FilePath | None = None
    dense_baseline: bool = False
    round_to: PositiveInt = 1
    tensorboard: bool = False
    curves: bool = True


class Config(Section):
    """A whole recipe, every value checked."""

    model: ModelSection
    data: DataSection
    penalty: PenaltySection = PenaltySection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    average: AverageSection | None = None
    distill: DistillSection | None = None
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _compares_something(self) -> Config:
        if self.run.dense_baseline and self.penalty.name == NO_PENALTY:
            raise ValueError(
                "run.dense_baseline: penalty.name is none, so that the run is its own baseline; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _penalty_ends_in_time(self) -> Config:
        ends, epochs = self.penalty.epochs, self.schedule.epochs
        if self.penalty.name != NO_PENALTY and ends is not None and ends > epochs:
            raise ValueError(
                f"penalty.epochs: got {ends}, but schedule.epochs (--epochs) is {epochs}, so that the penalty would "
                f"never end; give fewer, or let it act to the end with --set penalty.epochs={epochs}"
            )
        return self

    @model_validator(mode="after")
    def _patience_can_count(self) -> Config:
        if self.schedule.patience is not None and self.penalty_acts_to >= self.schedule.epochs:
            raise ValueError(
                f"schedule.patience: got {self.schedule.patience}, but epochs count from the penalty's end on, and it "
                f"acts in all {self.schedule.epochs}; let it end earlier with penalty.epochs, or leave patience out"
            )
        return self

    @model_validator(mode="after")
    def _no_average_of_gates(self) -> Config:
        if self.average is not None and self.penalty.name == HARD_CONCRETE:
            raise ValueError(
                "average: weights before and after gates are folded into them have no common average; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _gates_are_alone(self) -> Config:
        penalty = self.penalty
        if penalty.name == HARD_CONCRETE:
            for key, meaningless in (
                ("budget", penalty.budget is not None),
                ("compact_every", penalty.compact_every > 0),
                ("mode", penalty.mode != "prox"),
            ):
                if meaningless:
                    raise ValueError(f"penalty.{key}: gates are folded when the penalty ends; leave it out")
        return self

    @model_validator(mode="after")
    def _budget_can_be_met(self) -> Config:
        penalty = self.penalty
        if penalty.budget is None or penalty.name == NO_PENALTY:
            return self
        measure = penalty.budget.measure
        if measure != "groups" and penalty.granularity != "coupled":
            raise ValueError(
                f"penalty.budget.measure: {measure} counts whole channels, got penalty.granularity "
                f"{penalty.granularity}; use coupled, or the measure groups"
            )
        if penalty.strength_schedule != "constant":
            raise ValueError("penalty.strength_schedule: with a budget the strength follows the budget; leave it out")
        if penalty.mode == "prox" and penalty.strength == 0:
            raise ValueError("penalty.strength: got 0; with a budget it is where the search for the strength starts")
        if penalty.compact_every:
            raise ValueError("penalty.compact_every: with a budget the network stays whole to the end; leave it out")
        if penalty.warmup_epochs >= self.penalty_epochs:
            raise ValueError(
                f"penalty.warmup_epochs: got {penalty.warmup_epochs:g}, but with a budget the penalty acts for "
                f"{self.penalty_epochs} epochs (penalty.epochs): expected fewer"
            )
        return self

    @property
    def group_weights(self) -> str | None:
        """A name in ``compress.optim.GROUP_WEIGHTS``; none for the penalty's own way."""
        budget = self.penalty.budget
        if self.penalty.group_weights is not None or budget is None:
            return self.penalty.group_weights
        return {"macs": "macs", "params": "size", "bytes": "size", "groups": None}[budget.measure]

    @property
    def penalty_epochs(self) -> int:
        """Epochs with the penalty; after them dead groups stay dead."""
        if self.penalty.epochs is not None:
            return self.penalty.epochs
        return self.schedule.epochs if self.penalty.budget is None else -(-self.schedule.epochs // 2)

    @property
    def penalty_acts_to(self) -> int:
        """The number of the first epoch, from 0, without a penalty."""
        return 0 if self.penalty.name == NO_PENALTY else self.penalty_epochs

    @property
    def out(self) -> Path:
        """The run directory."""
        if self.run.out is not None:
            return self.run.out
        model = self.model.name.rpartition(":")[2]
        return Path("runs") / f"{model}-{Path(self.data.name).name}-{self.penalty.name}"
