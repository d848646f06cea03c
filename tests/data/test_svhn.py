import hashlib

import numpy as np
import pytest
import scipy.io

from compress.data import load
from compress.errors import DataError
from compress.torchvision_compat import torchvision


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Twenty training and three test images in SVHN's layout; the digit 0 has label 10 there."""
    files = {}
    for split, labels in (("train", [10, *range(1, 10)] * 2), ("test", [3, 10, 1])):
        path = tmp_path / f"{split}_32x32.mat"
        images = np.zeros((32, 32, 3, len(labels)), np.uint8)
        images[:, :, 2] = np.array(labels)
        scipy.io.savemat(path, {"X": images, "y": np.array(labels, np.uint8)[:, None]})
        files[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", files)
    return tmp_path


def test_reads_torchvisions_layout(svhn):
    data = load("svhn", svhn, validation_share=0.5)
    assert data.image_shape == (3, 32, 32)
    assert data.train.labels.sort().values.tolist() == list(range(10))
    assert data.validation.labels.sort().values.tolist() == list(range(10))
    assert data.mean == pytest.approx((0, 0, 5.5 / 255))
    assert data.load_test().labels.tolist() == [3, 0, 1]


def test_names_the_missing_test_file(svhn):
    (svhn / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"svhn: .* lacks test_32x32\.mat; pass --download"):
        load("svhn", svhn)


def test_refuses_a_damaged_file(svhn):
    path = svhn / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"svhn: .*train_32x32\.mat is damaged; delete it"):
        load("svhn", svhn)
