import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (64, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
