import gzip
import hashlib

import numpy as np
import pytest
import torch

from compress.data import load
from compress.data.mnist import FILES
from compress.errors import DataError


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def raw(tmp_path):
    """A tiny data set in MNIST's layout: 20 training and 10 test images, each filled with its label."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 20), ("test", 10)):
        labels = np.arange(n) % 10
        image_file, label_file = FILES[split]
        (folder / image_file).write_bytes(idx(np.broadcast_to(labels[:, None, None], (n, 28, 28))))
        (folder / label_file).write_bytes(idx(labels))
    return folder


def load_small(raw):
    return load("mnist", raw.parents[1], validation_share=0.5)


def test_reads_plain_and_compressed_files_alike(raw):
    plain = load_small(raw)
    for path in sorted(raw.iterdir()):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    compressed = load_small(raw)
    for data in (plain, compressed):
        assert data.image_shape == (1, 28, 28)
        for split in (data.train, data.validation, data.load_test()):
            assert split.labels.sort().values.tolist() == list(range(10))
            assert torch.equal(split.images(torch.arange(10))[:, 0, 27, 27].long(), split.labels)


def test_test_split_is_not_read_before_it_is_asked_for(raw):
    (raw / FILES["test"][0]).write_bytes(b"")
    data = load_small(raw)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: is no idx file of 3 dimensions .begins with nothing"):
        data.load_test()


def test_names_missing_files_of_the_test_split_too(raw):
    (raw / FILES["test"][1]).unlink()
    with pytest.raises(DataError, match=r"mnist: .*raw lacks t10k-labels-idx1-ubyte .*--download"):
        load_small(raw)


def test_refuses_a_truncated_file(raw):
    path = raw / FILES["train"][0]
    path.write_bytes(path.read_bytes()[:-1])
    message = (
        r"train-images-idx3-ubyte: is truncated .*: 15,695 bytes, expected 15,696 for shape \[20, 28, 28\]; delete"
    )
    with pytest.raises(DataError, match=message):
        load_small(raw)


@pytest.mark.parametrize("keep", [5, 60])
def test_refuses_a_truncated_compressed_file(raw, keep):
    path = raw / FILES["train"][0]
    (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:keep])
    path.unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read .*delete it"):
        load_small(raw)


def test_refuses_labels_that_do_not_fit(raw):
    path = raw / FILES["train"][1]
    path.write_bytes(idx(np.arange(19) % 10))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: 19 labels for 20 images"):
        load_small(raw)
    path.write_bytes(idx(np.arange(20)))
    with pytest.raises(DataError, match="expected labels 0 to 9"):
        load_small(raw)
    path.write_bytes(idx(np.zeros((20, 1))))
    with pytest.raises(DataError, match=r"is no idx file of 1 dimensions .begins with 00000802"):
        load_small(raw)


def test_reads_the_original_images(mnist_root):
    data = load("mnist", mnist_root)
    assert (len(data.train), len(data.validation)) == (54_000, 6_000)
    # The published statistics of all 60,000 training images are 0.1307 and 0.3081.
    assert data.mean == pytest.approx([0.1307], abs=5e-4)
    assert data.std == pytest.approx([0.3081], abs=5e-4)
    test = data.load_test()
    pixels = test.images(torch.arange(10_000)).numpy().tobytes()
    header = bytes([0, 0, 8, 3]) + np.array([10_000, 28, 28], ">u4").tobytes()
    assert hashlib.md5(header + pixels).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
