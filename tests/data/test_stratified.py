import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.data.stratified import complement, stratified_choice


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_every_class_has_its_share(sizes, share, seed):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    count = int(share * len(labels))
    chosen = stratified_choice(labels, count, seed=seed)
    assert len(chosen) == count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    of_class = labels[chosen].bincount(minlength=len(sizes))
    exact = torch.tensor(sizes) * count / max(len(labels), 1)
    assert ((of_class - exact).abs() < 1).all()
    assert torch.cat([chosen, complement(chosen, len(labels))]).sort().values.tolist() == list(range(len(labels)))


def test_choice_is_a_function_of_the_seed():
    labels = torch.arange(3).repeat(40)
    first, again, other = (stratified_choice(labels, 30, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_largest_remainders_come_first():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    # Of 4: shares 2.0, 1.2, 0.8.
    assert labels[stratified_choice(labels, 4, seed=0)].bincount().tolist() == [2, 1, 1]


def test_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="cannot choose 3 of 2 images"):
        stratified_choice(torch.tensor([0, 1]), 3, seed=0)
