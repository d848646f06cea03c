import re
from pathlib import Path

import pytest

from compress.errors import ConfigError
from compress.penalties import PENALTIES
from compress.train.recipe import changed_keys, parse_value, resolve, to_toml

GIVEN = {"model.name": "lenet5", "data.name": "digits"}


def faults_of(flags: dict[str, object] | None = None, settings: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(flags={**GIVEN, **(flags or {})}, settings=settings)
    first, *faults = str(caught.value).splitlines()
    assert re.search(rf"\b{len(faults)} faults?\b", first)
    return [fault.strip() for fault in faults]


def test_all_faults_are_told_at_once():
    faults = faults_of(
        {"model.name": "lenet6", "data.name": "mnits", "penalty.name": "l7", "penalty.granularity": "row"},
        (
            "penalty.strength=-1",
            "optimizer.lrr=1",
            "schedules.epochs=3",
            "run.device=tpu",
            "data.augment.pad=-2",
            "nonsense",
            "optimizer.name=nadam",
            "schedule.lr_schedule=linear",
            "penalty.group_weights=log",
        ),
    )
    expected = [
        ("--set nonsense", "SECTION.KEY=VALUE"),
        ("model.name", "vgg16", "torchvision:NAME", "timm:NAME", "FILE.py:factory", "did you mean lenet5?"),
        ("data.name", "fashion-mnist", "did you mean mnist?"),
        ("penalty.name", "l0", "group-lasso", "none"),
        ("penalty.granularity", "weight", "filter", "coupled"),
        ("penalty.strength", "-1", "greater than or equal to 0"),
        ("penalty.group_weights", "sqrt-size"),
        ("optimizer.lrr", "did you mean optimizer.lr?", "weight_decay"),
        ("optimizer.name", "rmsprop", "did you mean adam?"),
        ("schedule.lr_schedule", "cosine"),
        ("schedules", "unknown key (did you mean schedule?)"),
        ("run.device", "'tpu'", "'cuda'"),
        ("data.augment.pad", "-2"),
    ]
    assert len(faults) == len(expected)
    for key, *words in expected:
        [fault] = [fault for fault in faults if fault.startswith(f"{key}:")]
        assert [word for word in words if word.lower() not in fault.lower()] == []


def test_missing_sections_name_their_flags():
    with pytest.raises(ConfigError, match=r"(?s)model: missing.*--model NAME.*data: missing.*--dataset NAME"):
        resolve()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "true", '"3"'])
def test_a_strength_is_a_finite_number(value: str):
    [fault] = faults_of(settings=(f"penalty.strength={value}",))
    assert fault.startswith("penalty.strength: got ")


def test_every_shape_parameter_of_a_penalty_is_a_key():
    for name, cls in PENALTIES.items():
        for key, default in cls.shape_parameters().items():
            config = resolve(flags={**GIVEN, "penalty.name": name}, settings=[f"penalty.{key}={default}"])
            assert config.penalty.shape() == {key: default}
    assert resolve(flags={**GIVEN, "penalty.name": "lp"}).penalty.shape() == {}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (("penalty.name=lp", "penalty.p=1.5"), "penalty.p: got 1.5; expected a finite number above 0 and below 1"),
        (("penalty.name=scad", "penalty.a=2"), "penalty.a: got 2; expected a finite number above 2"),
        (("penalty.name=mcp", "penalty.a=nan"), "penalty.a: got nan; expected a finite number above 0"),
        (("penalty.name=mcp", "penalty.p=0.5"), "penalty.p: got 0.5; mcp has no such parameter; it has: a"),
        (("penalty.name=l0", "penalty.eps=0.5"), "penalty.eps: got 0.5; l0 has no such parameter; leave it out"),
    ],
)
def test_a_shape_parameter_that_the_penalty_cannot_take_is_a_fault(settings: tuple[str, ...], fault: str):
    assert faults_of(settings=settings) == [fault]


def test_without_a_penalty_shape_parameters_may_stay():
    """As in the recipe of a run that is fine-tuned, or of its dense baseline."""
    assert resolve(flags={**GIVEN, "penalty.name": "none", "penalty.p": 0.5}).penalty.p == 0.5


def test_momentum_is_refused_where_there_is_none():
    [fault] = faults_of(settings=("optimizer.name=adam", "optimizer.momentum=0.9"))
    assert fault == "optimizer.momentum: got 0.9; adam has no such key; leave it out"


def test_a_value_in_a_sections_place_is_a_fault(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('optimizer = "sgd"\n[model]\nname = "lenet5"\n[data]\nname = "digits"\n')
    with pytest.raises(ConfigError, match=r"optimizer: got 'sgd', expected a \[optimizer\] section"):
        resolve(recipe)
    with pytest.raises(ConfigError, match=r"optimizer\.lr: optimizer is a value in the recipe"):
        resolve(recipe, settings=("optimizer.lr=1",))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("3", 3),
        ("true", True),
        ("cosine", "cosine"),
        ('"3"', "3"),
        ("a b", "a b"),
        ("1\nx = 2", "1\nx = 2"),
    ],
)
def test_set_values_are_toml_or_else_text(text: str, value: object):
    assert parse_value(text) == value


def test_settings_win_over_flags_and_flags_over_the_recipe(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[model]\nname = "lenet5"\n[data]\nname = "digits"\n[schedule]\nepochs = 1\nbatch_size = 2\n[run]\nseed = 3\n'
    )
    config = resolve(recipe, {"schedule.epochs": 10, "run.seed": 30, "data.limit": None}, ["run.seed=300"])
    assert (config.schedule.batch_size, config.schedule.epochs, config.run.seed) == (2, 10, 300)
    assert config.data.limit is None


def test_a_saved_configuration_reads_back_the_same(tmp_path: Path):
    config = resolve(flags={**GIVEN, "run.out": tmp_path, "penalty.strength": 1}, settings=["optimizer.momentum=0.5"])
    saved = tmp_path / "config.toml"
    saved.write_text(to_toml(config))
    assert resolve(saved) == config


def test_changed_keys_name_what_is_computed_and_not_where(tmp_path: Path):
    before = resolve(flags={**GIVEN, "run.out": tmp_path / "a"})
    after = resolve(flags={**GIVEN, "run.out": tmp_path / "b", "optimizer.lr": 0.5, "data.image_size": 28})
    assert changed_keys(before, after) == ["data.image_size: None -> 28", "optimizer.lr: 0.01 -> 0.5"]


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").touch()
    (tmp_path / "photos").mkdir()
    config = resolve(flags={"model.name": "net.py:make", "data.name": "photos", "data.dir": Path("here")})
    assert config.model.name == f"{tmp_path}/net.py:make"
    assert config.data.name == str(tmp_path / "photos")
    assert config.data.dir == tmp_path / "here"


def test_a_missing_model_file_is_a_fault():
    [fault] = faults_of({"model.name": "missing/net.py:make"})
    assert "there is no file missing/net.py" in fault


@pytest.mark.parametrize(("content", "word"), [(None, "No such file"), (b"a = ", "not valid TOML"), (b"\xff", "TOML")])
def test_an_unreadable_recipe_is_refused(tmp_path: Path, content: bytes | None, word: str):
    recipe = tmp_path / "recipe.toml"
    if content is not None:
        recipe.write_bytes(content)
    with pytest.raises(ConfigError, match=word):
        resolve(recipe)


def test_the_repositorys_recipes_are_valid():
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    assert recipes
    for recipe in recipes:
        # A folder that the reader has yet to make is the one thing that may be missing.
        assert resolve(recipe, {"data.name": "digits"}).model.name


def test_l0_is_refused_as_a_subgradient():
    [fault] = faults_of({**GIVEN, "penalty.name": "l0", "penalty.mode": "subgradient"})
    assert fault.startswith("penalty.mode")
    assert "derivative" in fault


def test_a_penalty_that_would_never_end_is_a_fault(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[model]\nname = "lenet5"\n[data]\nname = "digits"\n[penalty]\nepochs = 12\n[schedule]\nepochs = 20\n'
    )
    for settings in ([], ["penalty.epochs=5"], ["penalty.name=none"]):
        assert resolve(recipe, {"schedule.epochs": 20 if not settings else 5}, settings)
    with pytest.raises(ConfigError) as caught:
        resolve(recipe, {"schedule.epochs": 5})
    assert str(caught.value).splitlines() == [
        f"{recipe} with the command line: 1 fault in the configuration",
        "  penalty.epochs: got 12, but schedule.epochs (--epochs) is 5, so that the penalty would never end; give "
        "fewer, or let it act to the end with --set penalty.epochs=5",
    ]


@pytest.mark.parametrize(
    ("in_the_recipe", "settings", "source"),
    [
        ("", ["penalty.strenght=2"], "command line"),
        ("strenght = 2", [], "{recipe}"),
        ("strenght = 2", ["optimizer.lr=0.1"], "{recipe}"),
        ("strenght = 2", ["penalty.mode=both"], "{recipe} and command line"),
        ("strength = -1", ["penalty.strength=-2"], "command line"),
        ("", ["penalties.name=l0"], "command line"),
        ("", ["nonsense"], "command line"),
    ],
)
def test_faults_are_said_to_be_where_they_are(tmp_path: Path, in_the_recipe: str, settings: list[str], source: str):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[model]\nname = "lenet5"\n[data]\nname = "digits"\n[penalty]\n{in_the_recipe}\n')
    with pytest.raises(ConfigError) as caught:
        resolve(recipe, {"run.seed": 3}, settings)
    first = str(caught.value).splitlines()[0]
    assert set(first.partition(": ")[0].split(" and ")) == set(source.format(recipe=recipe).split(" and "))


def test_whole_numbers_are_told_in_english():
    assert faults_of(settings=("data.limit=half",)) == ["data.limit: got 'half'; expected an integer"]


def test_a_missing_folder_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    [fault] = faults_of({"data.name": "fotos/"})
    assert f"there a folder {tmp_path}/fotos (expected train/<class>/" in fault
    assert "known: digits, mnist" in fault
    assert "did you mean" not in fault


def test_a_model_file_without_its_factory_is_a_fault(tmp_path: Path):
    (tmp_path / "net.py").touch()
    [fault] = faults_of({"model.name": f"{tmp_path}/net.py"})
    assert "expected FILE.py:factory, where factory is a function that returns the model" in fault


def test_a_key_that_is_missing_is_named_with_its_option():
    [fault] = faults_of(settings=("penalty.budget.measure=macs",))
    assert fault == "penalty.budget.target: missing; give it in the recipe or with --set penalty.budget.target=VALUE"


def test_a_run_without_penalty_is_its_own_baseline():
    [fault] = faults_of({**GIVEN, "penalty.name": "none", "run.dense_baseline": True})
    assert "its own baseline" in fault
