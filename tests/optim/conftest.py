"""A plain, slow view of groups, to check the batched one against."""

from collections.abc import Callable

import pytest
from torch import Tensor

from compress.groups import Groups, GroupSlice

Parts = Callable[[Groups, Callable[[GroupSlice], Tensor]], list[list[Tensor]]]


@pytest.fixture(scope="session")
def parts_of() -> Parts:
    """For each group, its pieces of ``values(slice)`` (the parameter's shape), one index after the other."""

    def parts(groups: Groups, values: Callable[[GroupSlice], Tensor]) -> list[list[Tensor]]:
        found: list[list[Tensor]] = [[] for _ in range(groups.count)]
        for part in groups.slices:
            for index, group in enumerate(part.groups.tolist()):
                if group < groups.count:
                    found[group].append(values(part).select(part.dim, index).reshape(-1))
        return found

    return parts
