"""Fusion: lists united and weighed, nothing invented, equal everywhere."""

import numpy as np
import pytest

from minionerec.rankers import experts, fusion
from minionerec.rankers.fusion import Lists


def random_lists(seed: int, rows: int = 40, items: int = 30, width: int = 12) -> Lists:
    """Lists of distinct items with positive weights, some rows shorter than others, one empty."""
    rng = np.random.default_rng(seed)
    named = np.stack([rng.permutation(items)[:width] for _ in range(rows)])
    weights = rng.random((rows, width)) + 0.01
    lengths = rng.integers(0, width + 1, rows)
    lengths[0] = 0
    beyond = np.arange(width) >= lengths[:, None]
    return Lists(np.where(beyond, -1, named), np.where(beyond, 0.0, weights))


def slowly_fused(lists, weights, k):
    """A dictionary per row."""
    fused = []
    for row in range(len(lists[0].items)):
        scores: dict[int, float] = {}
        for one, weight in zip(lists, weights, strict=True):
            total = one.weights[row].sum()
            for item, value in zip(one.items[row], one.weights[row], strict=True):
                if item >= 0 and weight:
                    scores[int(item)] = scores.get(int(item), 0.0) + weight * value / total
        fused.append(sorted(scores, key=lambda item: (-scores[item], item))[:k])
    return fused


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.0, 0.0, 0.0), (0.0, 0.25, 0.75)])
def test_a_fusion_ranks_as_a_dictionary_per_row_does(weights):
    lists = [random_lists(seed) for seed in range(3)]
    items, scores = fusion.fuse(fusion.union(lists), weights, 10)
    found = [[item for item in row if item >= 0] for row in items.tolist()]
    assert found == slowly_fused(lists, weights, 10)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_target_is_as_many_places_down_as_the_fused_list_says():
    lists = [random_lists(seed) for seed in range(3)]
    united = fusion.union(lists)
    items, _ = fusion.fuse(united, (0.4, 0.4, 0.2), 40)
    for row, ranked in enumerate(items):
        for place, item in enumerate(ranked[ranked >= 0]):
            targets = np.full(len(items), item)
            assert fusion.ranks(united, (0.4, 0.4, 0.2), targets)[row] == place
        missing = np.full(len(items), next(i for i in range(99) if i not in ranked))
        assert fusion.ranks(united, (0.4, 0.4, 0.2), missing)[row] > 1000


def test_a_target_among_equals_is_where_the_fused_list_has_it():
    """Equal scores stand in the order of the items, in the list and in the place of a target."""
    lists = [Lists(np.array([[7, 2, 5]]), np.array([[1.0, 1.0, 1.0]]))]
    united = fusion.union(lists)
    items, _ = fusion.fuse(united, (1.0,), 3)
    assert items.tolist() == [[2, 5, 7]]
    places = [fusion.ranks(united, (1.0,), np.array([item]))[0] for item in (2, 5, 7)]
    assert places == [0, 1, 2]


def test_an_experts_list_has_no_unwanted_item():
    expert = experts.popularity(np.array([3, 9, 5, 0]))
    found = fusion.from_expert(expert, [(0,), (0,)], 4, [{1}, set()])
    assert found.items.tolist() == [[2, 0, -1, -1], [1, 2, 0, -1]]
    assert (found.weights[:, :2] > 0).all()


def test_lists_of_a_large_catalogue_are_those_of_a_small_one_once_they_are_united(monkeypatch):
    """Weights are probabilities over the whole catalogue in one and over the list in the other."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 12, 6).tolist() for _ in range(30)]
    markov = experts.markov(sequences, 12, reach=2, backward=0.5, window=2)
    texts = experts.text_knn(rng.normal(size=(12, 4)), window=2, again=False, temperature=0.1)
    histories = [tuple(sequence[:3]) for sequence in sequences] + [(11,)]
    monkeypatch.setattr(experts, "LENGTH", 4)
    united = []
    for small in (12, 11):
        monkeypatch.setattr(experts, "SMALL", small)
        lists = [fusion.from_expert(expert, histories, 4) for expert in (markov, texts)]
        united.append(fusion.union(lists))
    np.testing.assert_array_equal(united[0].items, united[1].items)
    np.testing.assert_allclose(united[0].shares, united[1].shares, atol=1e-6)


def test_a_fusion_with_all_weight_on_one_ranker_is_that_ranker():
    first, second = random_lists(1), random_lists(2)
    items, _ = fusion.fuse(fusion.union([first, second]), (1.0, 0.0), 12)
    for row, ranked in enumerate(items):
        order = np.argsort(-first.weights[row], kind="stable")
        assert ranked[ranked >= 0].tolist() == [i for i in first.items[row][order] if i >= 0]


def test_equal_scores_are_ordered_by_item_whatever_list_named_them_first():
    lists = [Lists(np.array([[7]]), np.array([[1.0]])), Lists(np.array([[3]]), np.array([[5.0]]))]
    for these in (lists, lists[::-1]):
        items, scores = fusion.fuse(fusion.union(these), (0.5, 0.5), 3)
        assert items.tolist() == [[3, 7, -1]]
        assert scores.tolist() == [[0.5, 0.5, 0.0]]


def test_an_item_that_no_list_names_is_never_recommended():
    """So what every ranker leaves out stays out, and the fusion is no longer than the union."""
    lists = [random_lists(seed, items=100) for seed in range(2)]
    items, _ = fusion.fuse(fusion.union(lists), (0.5, 0.5), 50)
    for row, ranked in enumerate(items):
        there = ranked[ranked >= 0].tolist()
        named = set(lists[0].items[row]) | set(lists[1].items[row])
        assert set(there) == named - {-1}
        assert len(there) == len(set(there))


def test_the_memory_of_a_union_does_not_grow_with_the_catalogue():
    sizes = []
    for items in (1_000, 1_000_000):
        one = random_lists(3, items=items, rows=8)
        sizes.append(fusion.union([one, one]).shares.nbytes)
    assert sizes[0] == sizes[1]


def test_beams_are_read_as_probabilities_and_empty_places_as_nothing():
    found = fusion.from_log_probabilities(
        np.array([[4, 2, -1]]), np.array([[np.log(0.5), np.log(0.25), -np.inf]])
    )
    assert found.items.tolist() == [[4, 2, -1]]
    assert found.weights.tolist() == [pytest.approx([0.5, 0.25, 0.0])]


def test_lists_of_other_rows_cannot_be_fused():
    with pytest.raises(ValueError, match=r"^lists of \[3, 4\] histories cannot be united$"):
        fusion.union([random_lists(0, rows=4), random_lists(0, rows=3)])
