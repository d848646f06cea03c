import pytest
import torch

from compress.penalties import PENALTIES
from compress.train.config import Config, DataSection, ModelSection, OptimizerSection, PenaltySection
from compress.train.divergence import DivergenceError
from compress.train.learner import Learner, build_learner

LR, STRENGTH = 0.1, 0.3


def make(**penalty: object) -> Learner:
    """One linear layer, 3 -> 2 -> 2: what a step does can be computed by hand."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 2))
    config = Config(
        model=ModelSection(name="lenet5"),
        data=DataSection(name="digits"),
        penalty=PenaltySection(**{"name": "l1", "granularity": "weight", "strength": STRENGTH, **penalty}),
        optimizer=OptimizerSection(name="sgd", lr=LR, momentum=0.0),
    )
    return build_learner(config, model, torch.zeros(1, 3, 1, 1))


IMAGES, LABELS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]]).reshape(2, 3, 1, 1), torch.tensor([0, 1])


def after_plain_step() -> tuple[torch.Tensor, torch.Tensor]:
    """The first layer's weights before, and after a gradient step without penalty."""
    learner = make()
    before = learner.model[1].weight.detach().clone()
    learner.step(IMAGES, LABELS, lr=LR, strength=0.0)
    return before, learner.model[1].weight.detach()


def test_prox_soft_thresholds_the_step():
    _, plain = after_plain_step()
    learner = make()
    learner.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    expected = plain.sign() * (plain.abs() - LR * STRENGTH).clamp_min(0)
    torch.testing.assert_close(learner.model[1].weight.detach(), expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty_acts_with_the_shape_of_the_recipe(name: str):
    shape = {key: 0.9 * default for key, default in PENALTIES[name].shape_parameters().items()}
    _, plain = after_plain_step()
    learner = make(name=name, **shape)
    learner.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    magnitudes = plain.abs().flatten()
    for part in PENALTIES[name](STRENGTH, **shape).parts:
        magnitudes = part.prox(magnitudes, LR)
    expected = plain.sign() * magnitudes.reshape(plain.shape)
    torch.testing.assert_close(learner.model[1].weight.detach(), expected)
    assert not torch.equal(expected, plain)


def test_subgradient_moves_by_the_sign_of_the_old_weights():
    before, plain = after_plain_step()
    learner = make(mode="subgradient")
    learner.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    torch.testing.assert_close(learner.model[1].weight.detach(), plain - LR * STRENGTH * before.sign())


@pytest.mark.parametrize("mode", ["prox", "subgradient"])
def test_frozen_zeros_stay_and_the_rest_is_not_penalised(mode: str):
    plain, learner = make(), make(mode=mode)
    for each in (plain, learner):
        each.model[1].weight.data[0, 1] = 0.0
    learner.freeze_()
    learner.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    plain.step(IMAGES, LABELS, lr=LR, strength=0.0)
    expected = plain.model[1].weight.detach().clone()
    assert expected[0, 1] != 0
    expected[0, 1] = 0.0
    torch.testing.assert_close(learner.model[1].weight.detach(), expected)
    assert learner.dead_share() == pytest.approx(1 / 10)
    assert learner.live_groups() == {"1": 5, "2": 4}


def test_a_step_reports_its_batch_and_a_bad_loss_leaves_the_weights():
    learner = make()
    with torch.no_grad():
        logits = learner.model(IMAGES)
        loss = torch.nn.functional.cross_entropy(logits, LABELS)
    result = learner.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    assert result.loss == pytest.approx(float(loss))
    assert (result.correct, result.images) == (int((logits.argmax(1) == LABELS).sum()), 2)
    before = learner.model[1].weight.detach().clone()
    with pytest.raises(DivergenceError, match="the loss is nan"):
        learner.step(IMAGES * torch.inf, LABELS, lr=LR, strength=STRENGTH)
    assert torch.equal(learner.model[1].weight, before)


def test_shares_of_classes_are_labels_too():
    learner = make()
    shares = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    with torch.no_grad():
        logits = learner.model(IMAGES)
    result = learner.step(IMAGES, shares, lr=LR, strength=STRENGTH)
    assert result.loss == pytest.approx(float(-(shares * logits.log_softmax(1)).sum(1).mean()))
    assert result.correct == int((logits.argmax(1) == 0).sum())
    assert result.images == 2


def test_one_hot_shares_take_the_step_of_their_labels():
    by_label, by_share = make(), make()
    by_label.step(IMAGES, LABELS, lr=LR, strength=STRENGTH)
    by_share.step(IMAGES, torch.eye(2)[LABELS], lr=LR, strength=STRENGTH)
    for one, other in zip(by_label.model.parameters(), by_share.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
