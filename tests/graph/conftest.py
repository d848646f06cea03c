"""Networks of the graph tests begin at the same seed."""

import pytest
import torch

from small_networks import Net


@pytest.fixture
def net() -> type[Net]:
    torch.manual_seed(0)
    return Net
