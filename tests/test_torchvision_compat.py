import subprocess
import sys

import pytest
import torch

from compress.torchvision_compat import torchvision


def test_the_operators_that_the_import_needs_are_known():
    assert hasattr(torch.ops.torchvision, "nms")
    assert hasattr(torch.ops.torchvision, "qnms")


def test_nms_works_or_says_that_the_library_is_missing():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    if torchvision.extension._has_ops():
        assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    else:
        with pytest.raises(RuntimeError, match=r"Couldn't load custom C\+\+ ops"):
            torchvision.ops.nms(boxes, scores, 0.5)


def test_models_and_data_leave_torchvision_alone_until_it_is_needed():
    program = (
        "import sys, compress.data, compress.models; compress.data.load('digits'); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
