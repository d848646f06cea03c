import hashlib
import pickle

import numpy as np
import pytest
import torch

from compress.data import load
from compress.errors import DataError
from compress.torchvision_compat import torchvision


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Ten images in CIFAR-10's layout, five in each of two files, whose red channel is the label."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        content = pickle.dumps(content)
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    def batch(labels):
        pixels = np.zeros((len(labels), 3, 32, 32), np.uint8)
        pixels[:, 0] = np.array(labels)[:, None, None]
        return {"data": pixels.reshape(len(labels), -1), "labels": labels}

    dataset = torchvision.datasets.CIFAR10
    train = [write("data_batch_1", batch([0, 1, 2, 3, 4])), write("data_batch_2", batch([0, 1, 2, 3, 4]))]
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", [write("test_batch", batch([9, 8]))])
    name, md5 = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(dataset, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_reads_torchvisions_layout(cifar10):
    data = load("cifar10", cifar10, validation_share=0.5)
    assert data.image_shape == (3, 32, 32)
    assert data.classes[9] == "class 9"
    for split in (data.train, data.validation):
        assert split.labels.sort().values.tolist() == [0, 1, 2, 3, 4]
        images = split.images(torch.arange(5))
        assert torch.equal(images[:, 0, 5, 5].long(), split.labels)
        assert images[:, 1:].max() == 0
    assert data.mean == pytest.approx((2 / 255, 0, 0))
    assert data.load_test().labels.tolist() == [9, 8]


def test_refuses_a_damaged_file(cifar10):
    path = cifar10 / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cifar10: .*cifar-10-batches-py: is missing or damaged; pass --download"):
        load("cifar10", cifar10)
