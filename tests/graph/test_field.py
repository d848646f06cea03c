import pytest
import torch

from compress.graph.field import Field

NAN = float("nan")


def test_keeps_one_entry_along_each_uniform_dimension():
    full = torch.arange(4).reshape(1, 4, 1, 1).expand(2, 4, 3, 5)
    field = Field.of(full)
    assert field.data.shape == (1, 4, 1, 1)
    assert field.shape == (2, 4, 3, 5)
    assert torch.equal(field.full(), full)


def test_materialised_uniform_dimensions_are_found_too():
    assert Field.of(torch.arange(4).reshape(1, 4, 1).expand(2, 4, 3).clone()).data.shape == (1, 4, 1)


def test_nan_counts_as_equal_to_itself():
    full = torch.tensor([NAN, 1.0, 0.0], dtype=torch.float64).reshape(1, 3, 1).repeat(1, 1, 4)
    field = Field.of(full)
    assert field.data.shape == (1, 3, 1)
    assert torch.equal(field.full().isnan(), full.isnan())


def test_what_varies_is_kept():
    full = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    assert torch.equal(Field.of(full).full(), full)
    almost = torch.zeros(2, 3, 4, dtype=torch.float64)
    almost[1, 2, 3] = NAN
    assert Field.of(almost).data.shape == (2, 3, 4)


def test_empty_and_scalar_tensors():
    assert Field.of(torch.zeros(0, 3, dtype=torch.int64)).full().shape == (0, 3)
    assert Field.of(torch.tensor(7)).full() == 7


def test_vector_and_where_it_varies():
    field = Field.along(torch.tensor([5, 6, 7]), 1, (2, 3, 4))
    assert field.vector(1).tolist() == [5, 6, 7]
    assert field.vector(-2).tolist() == [5, 6, 7]
    assert field.varies(1)
    assert not field.varies(0)
    assert Field.uniform(9, (2, 3), torch.int64).vector(1).tolist() == [9, 9, 9]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_uniform_is_one_entry(dtype):
    field = Field.uniform(3, (4, 5), dtype)
    assert field.data.numel() == 1
    assert field.full().sum() == 60
