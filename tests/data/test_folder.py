import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import load
from compress.data.folder import FileSplit
from compress.data.normalise import MIN_STD
from compress.data.split import TensorSplit
from compress.errors import DataError

HEADER_BYTES = 43  # of a PNG file: its size can be read, its pixels cannot
RED = {"cat": 10, "dog": 200}


def write_image(path, red, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = red
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten training images of each of two classes, 6x6, one of them in a deeper folder; two test images."""
    for name, red in RED.items():
        for i in range(9):
            write_image(tmp_path / "train" / name / f"{i}.png", red)
        write_image(tmp_path / "train" / name / "deeper" / "9.PNG", red)
        write_image(tmp_path / "test" / name / "0.png", red)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._0.png").write_text("not an image either")
    (tmp_path / "train" / ".cache").mkdir()
    write_image(tmp_path / "train" / "cat" / ".thumbnails" / "0.png", RED["cat"])
    return tmp_path


def test_reads_images_by_class(root):
    data = load(str(root), validation_share=0.2)
    assert data.classes == ("cat", "dog")
    assert data.image_shape == (3, 6, 6)
    assert data.train.labels.bincount().tolist() == [8, 8]
    assert data.validation.labels.bincount().tolist() == [2, 2]
    images = data.train.images(torch.tensor([0, 15, 3]))
    assert images.dtype == torch.uint8
    assert images[:, :, 2, 2].tolist() == [[10, 0, 0], [200, 0, 0], [10, 0, 0]]
    assert data.mean == pytest.approx((105 / 255, 0, 0))
    assert data.std == pytest.approx((95 / 255, MIN_STD, MIN_STD))  # what normalise divides by
    assert data.load_test().labels.tolist() == [0, 1]


def test_data_dir_names_the_folder_too(root):
    assert load("folder", root).classes == ("cat", "dog")


def test_uses_its_own_validation_split(root):
    write_image(root / "val" / "dog" / "0.png", 7)
    data = load(str(root), limit=6)
    assert data.train.labels.bincount().tolist() == [3, 3]
    assert data.validation.labels.tolist() == [1]
    assert data.validation.images(torch.tensor([0]))[0, 0, 0, 0] == 7


def test_without_a_test_folder_there_is_no_test_split(root):
    for name in RED:
        (root / "test" / name / "0.png").unlink()
        (root / "test" / name).rmdir()
    (root / "test").rmdir()
    assert load(str(root)).load_test() is None


def test_grey_images_become_colour(root):
    Image.new("L", (6, 6), 77).save(root / "test" / "cat" / "0.png")
    assert load(str(root)).load_test().images(torch.tensor([0]))[0, :, 0, 0].tolist() == [77, 77, 77]


def test_image_size_scales_images_of_any_size(root):
    write_image(root / "train" / "cat" / "wide.png", 10, size=(12, 5))
    data = load(str(root), image_size=4)
    assert data.image_shape == (3, 4, 4)
    assert data.load_test().image_shape == (3, 4, 4)


def test_a_folder_too_large_for_memory_is_the_same_batch_by_batch(root):
    kept = load(str(root))
    made = load(str(root), memory_gib=0)
    assert isinstance(kept.train, TensorSplit)
    assert isinstance(kept.load_test(), TensorSplit)
    assert isinstance(made.train, FileSplit)
    assert isinstance(made.load_test(), FileSplit)
    assert (kept.mean, kept.std) == (made.mean, made.std)
    indices = torch.tensor([11, 2, 11])
    assert torch.equal(kept.train.images(indices), made.train.images(indices))
    assert made.train.images(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_asks_for_image_size_where_sizes_differ(root, split):
    write_image(root / split / "dog" / "wide.png", 10, size=(12, 5))
    with pytest.raises(DataError, match=r"dog/wide\.png: is 12x5 pixels, the first training image 6x6; set image_size"):
        load(str(root))


def test_asks_for_image_size_where_images_are_not_square(root):
    write_image(root / "train" / "cat" / "0.png", 10, size=(12, 5))
    with pytest.raises(DataError, match=r"cat/0\.png: is 12x5 pixels; set image_size"):
        load(str(root))


@pytest.mark.parametrize("memory_gib", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
@pytest.mark.parametrize("image_size", [None, 4])
def test_names_a_corrupt_training_image(root, damage, memory_gib, image_size):
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:HEADER_BYTES] if damage is None else damage)
    # A validation image would be found when it is read: all but one image train.
    write_image(root / "val" / "dog" / "0.png", 7)
    with pytest.raises(DataError, match=r"train/dog/3\.png: cannot be read as an image .*replace or delete it"):
        load(str(root), image_size=image_size, memory_gib=memory_gib)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("file", ["1.png", "1.jpg"])
@pytest.mark.parametrize("bytes_lost", [100, None])
def test_a_corrupt_image_is_found_before_anything_is_trained(root, split, file, bytes_lost):
    path = root / split / "dog" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(b"nonsense" if bytes_lost is None else content[:-bytes_lost])
    with pytest.raises(DataError, match=rf"{split}/dog/{file}: cannot be read as an image"):
        load(str(root), memory_gib=0)
    path.write_bytes(content + bytes(200))  # a whole one, with something behind it
    load(str(root), memory_gib=0)


@pytest.mark.parametrize("memory_gib", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_names_up_to_ten_corrupt_images(root, memory_gib, first):
    paths = [root / "train" / name / f"{i}.png" for name in ("cat", "dog") for i in range(first, first + 6)]
    for path in paths:
        path.write_bytes(b"nonsense")
    write_image(root / "val" / "dog" / "0.png", 7)
    with pytest.raises(DataError) as caught:
        load(str(root), memory_gib=memory_gib)
    title, *listed, last = str(caught.value).splitlines()
    assert (title, last) == ("12 images cannot be read", "  and 2 more")
    assert [line.partition(":")[0].strip() for line in listed] == list(map(str, paths[:10]))
    assert all("cannot be read as an image (UnidentifiedImageError" in line for line in listed)


def test_refuses_a_single_class(root):
    shutil.rmtree(root / "train" / "dog")
    shutil.rmtree(root / "test" / "dog")
    with pytest.raises(DataError, match=r"train: has one class alone, cat, and so nothing to learn; expected train/"):
        load(str(root))


def test_refuses_other_layouts(tmp_path):
    with pytest.raises(DataError, match="has no folder train/; expected train/<class>/<images>"):
        load(str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: has no class folder; expected"):
        load(str(tmp_path))
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train: no image in cat; image suffixes: \.bmp .*\.webp; expected"):
        load(str(tmp_path))
    with pytest.raises(DataError, match="absent: there is no such folder; expected"):
        load("folder", tmp_path / "absent")


@pytest.mark.parametrize("split", ["val", "test"])
def test_refuses_classes_that_training_lacks_and_empty_splits(root, split):
    (root / "train" / "bird").mkdir()
    write_image(root / "train" / "bird" / "0.png", 1)
    write_image(root / split / "birds" / "0.png", 1)
    with pytest.raises(DataError, match=f"{split}: classes that .*train lacks: birds; expected"):
        load(str(root))


def test_refuses_an_empty_validation_folder(root):
    (root / "val").mkdir()
    with pytest.raises(DataError, match=r"val: holds no image; .*remove the folder or fill it"):
        load(str(root))


def test_reads_cifar10_as_jpeg(cifar10_jpeg):
    data = load(str(cifar10_jpeg), limit=500)
    assert (len(data.train), len(data.validation), len(data.load_test())) == (450, 50, 200)
    assert data.image_shape == (3, 32, 32)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    # The means of all 50,000 images; those of 450 lie within three standard errors (0.03) of them.
    assert data.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.03)


def test_sixteen_bits_are_scaled_and_floats_refused(tmp_path):
    for i in range(4):
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 6), 0x8000, dtype=np.uint16)).save(tmp_path / "train" / name / f"{i}.png")
    data = load(str(tmp_path), validation_share=0.25)
    assert data.train.images(torch.tensor([0]))[0, 0, 0, 0] == 0x80
    Image.fromarray(np.zeros((6, 6), dtype=np.float32)).save(tmp_path / "train" / "a" / "0.tiff")
    with pytest.raises(DataError, match="pixels of 32 bits"):
        load(str(tmp_path), validation_share=0.25)
