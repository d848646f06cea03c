import math
import re
from pathlib import Path

import pytest
import torch

from compress.data import DATASETS, load
from compress.data import split as split_module
from compress.data.stratified import stratified_choice
from compress.errors import DataError


def all_images(split):
    return split.images(torch.arange(len(split)))


def test_digits_is_split_by_class_in_proportion():
    data = load("digits")
    test = data.load_test()
    assert (len(data.train), len(data.validation), len(test)) == (1294, 144, 359)
    assert data.image_shape == data.train.image_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    everything = sum(split.labels.bincount() for split in (data.train, data.validation, test))
    assert everything.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for split, share in ((data.train, 0.72), (data.validation, 0.08), (test, 0.2)):
        # Two roundings to whole images lie behind each count.
        assert (split.labels.bincount() - share * everything).abs().max() <= 2
        assert split.labels.dtype == torch.int64


def test_splits_share_no_image():
    data = load("digits")
    splits = [data.train, data.validation, data.load_test()]
    seen = [{bytes(image.flatten().tolist()) for image in all_images(split)} for split in splits]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797  # no digit occurs twice in this set


def test_mean_and_std_are_those_of_the_training_split():
    data = load("digits")
    pixels = all_images(data.train).double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()], rel=1e-12)
    assert data.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-12)


def test_seed_chooses_the_validation_split_but_never_the_test_split():
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(all_images(first.validation), all_images(again.validation))
    assert not torch.equal(all_images(first.validation), all_images(other.validation))
    assert torch.equal(all_images(first.load_test()), all_images(other.load_test()))


def test_limit_counts_validation_images_too():
    data = load("digits", limit=100, validation_share=0.2)
    assert (len(data.train), len(data.validation), len(data.load_test())) == (80, 20, 359)
    assert data.validation.labels.bincount().tolist() == [2] * 10


def test_image_size_scales_all_splits():
    data = load("digits", image_size=16)
    assert data.image_shape == (1, 16, 16)
    small, large = load("digits"), data
    # Bilinear scaling keeps the mean up to rounding and the borders, which are dark in this set.
    assert large.mean == pytest.approx(small.mean, rel=0.01)
    assert all_images(large.load_test()).shape == (359, 1, 16, 16)


def test_a_split_too_large_for_memory_is_the_same_batch_by_batch():
    kept = load("digits", image_size=12)
    made = load("digits", image_size=12, memory_gib=0)
    assert (kept.memory_gib, made.memory_gib) == (None, 0)
    assert isinstance(kept.train, split_module.TensorSplit)
    assert isinstance(made.train, split_module.ResizedSplit)
    assert (kept.mean, kept.std) == (made.mean, made.std)
    indices = torch.tensor([5, 0, 5])
    assert torch.equal(kept.train.images(indices), made.train.images(indices))


def test_mean_and_std_of_many_images_are_those_of_a_sample(monkeypatch):
    monkeypatch.setattr("compress.data.STATISTICS_IMAGES", 100)
    data = load("digits", seed=3)
    sample = data.train.subset(stratified_choice(data.train.labels, 100, seed=3))
    pixels = all_images(sample).double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()], rel=1e-12)
    assert data.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-12)


def test_unknown_name_lists_the_known_ones():
    message = f"unknown data set 'minst' (did you mean mnist?); known: {', '.join(DATASETS)}, or the path of a folder"
    with pytest.raises(DataError, match=re.escape(message)):
        load("minst")


@pytest.mark.parametrize("name", [*sorted(set(DATASETS) - {"digits"}), "folder"])
def test_asks_for_the_data_folder(name):
    with pytest.raises(DataError, match=f"{name}: no data folder given; pass --data-dir DIR"):
        load(name)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_says_that_the_data_folder_is_missing_or_empty(name, tmp_path):
    with pytest.raises(DataError, match=f"{name}: there is no folder .*absent; expected it to hold .*--download"):
        load(name, tmp_path / "absent")
    with pytest.raises(DataError, match=f"{name}: .*{re.escape(str(tmp_path))}.*--download"):
        load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_size": 0}, "digits: image_size is 0, must be at least 1"),
        ({"validation_share": 1.0}, "digits: validation_share is 1.0, must lie between 0 and 1"),
        ({"validation_share": math.nan}, "digits: validation_share is nan"),
        ({"limit": 0}, "digits: limit is 0, must be at least 1"),
        ({"limit": 3}, "digits: a validation_share of 0.1 of 3 training images is 0 images"),
    ],
)
def test_refuses_numbers_out_of_range(arguments, message):
    with pytest.raises(DataError, match=message):
        load("digits", **arguments)


def test_path_like_name_is_a_folder():
    with pytest.raises(DataError, match=r"absent/folder: there is no such folder; expected train/<class>"):
        load(str(Path("absent/folder")))
