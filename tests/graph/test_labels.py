import torch

from compress.graph.labels import NEUTRAL, LabelBook, collapse


def test_classes_are_connected_components():
    book = LabelBook()
    a, b, c = book.fresh(3), book.fresh(3), book.fresh(3)
    book.unify(a, b)
    book.unify(b[:2], c[1:])
    classes = book.solve()
    assert classes.count == 4
    of_a, of_b, of_c = (classes.of(labels).tolist() for labels in (a, b, c))
    assert of_a == of_b
    assert of_c[1:] == of_a[:2]
    assert len({*of_a, of_c[0]}) == 4


def test_unify_broadcasts():
    book = LabelBook()
    channels, one = book.fresh(4), book.fresh(1)
    book.unify(channels.reshape(1, 4, 1), one.reshape(1, 1, 1))
    assert book.solve().count == 1


def test_neutral_meets_all_and_ties_nothing():
    book = LabelBook()
    a, b = book.fresh(1), book.fresh(1)
    for label in (a, b):
        book.unify(label, torch.tensor([NEUTRAL]))
    classes = book.solve()
    assert classes.count == 2
    assert classes.of(torch.tensor([NEUTRAL])).tolist() == [NEUTRAL]


def test_a_class_carries_the_reasons_of_all_its_labels_once():
    book = LabelBook()
    a, b, c = book.fresh(1), book.fresh(1), book.fresh(1)
    book.pin(a, "first")
    book.pin(b, "second")
    book.pin(b, "second")
    book.pin(torch.tensor([NEUTRAL]), "nobody")
    book.unify(a, b)
    classes = book.solve()
    assert classes.reasons == {int(classes.of(a)): ["first", "second"]}
    assert int(classes.of(c)) not in classes.reasons


def test_a_parameter_has_the_same_labels_at_every_use():
    book = LabelBook()
    first = book.parameter("conv.weight", 0, 4)
    assert torch.equal(first, book.parameter("conv.weight", 0, 4))
    assert not set(first.tolist()) & set(book.parameter("conv.weight", 1, 4).tolist())
    assert set(book.solve().parameters["conv.weight"]) == {0, 1}


def test_an_empty_book_has_no_classes():
    assert LabelBook().solve().count == 0


def test_collapse_lets_neutral_entries_give_way():
    labels = torch.tensor([[3, 3, NEUTRAL], [4, NEUTRAL, 4], [NEUTRAL] * 3])
    assert collapse(labels, (1,)).tolist() == [[3], [4], [NEUTRAL]]
    assert collapse(labels, (0,)) is None
    assert torch.equal(collapse(labels, ()), labels)
