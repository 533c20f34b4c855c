"""TGH, the training-free graph-and-text control. Run: python -m pytest tests/rankers/test_tgh.py"""

import random

import numpy as np
import pytest

from minionerec.rankers import tgh

LINE = [[0, 1, 2, 3, 4]]  # transitions 0 -> 1 -> 2 -> 3 -> 4


def ranked(graph: tgh.Graph, history: tuple[int, ...], variant=1, alpha=0.0, again=True):
    """Items, best first; equals in item order."""
    order = np.arange(len(graph.unit))
    scores = tgh.tgh(graph, order, variant, alpha, again).scores([history])[0]
    return np.argsort(-scores, kind="stable").tolist()


def steps_away(sequences, source: int, num_items: int) -> dict[int, int]:
    """Reference: breadth-first search; the source is 1 step away only if it followed itself."""
    after: dict[int, set[int]] = {item: set() for item in range(num_items)}
    for sequence in sequences:
        for first, second in zip(sequence, sequence[1:], strict=False):
            after[first].add(second)
    away: dict[int, int] = {}
    level, steps = {source}, 0
    while level:
        steps += 1
        level = {item for start in level for item in after[start]} - set(away)
        if steps > 1:
            level.discard(source)
        away.update(dict.fromkeys(level, steps))
    return away


@pytest.mark.parametrize("seed", range(10))
def test_rings_are_the_distances_of_a_breadth_first_search(seed):
    rng = random.Random(seed)
    sequences = [[rng.randrange(15) for _ in range(rng.randint(1, 5))] for _ in range(6)]
    graph = tgh.build_graph(sequences, np.eye(15))
    for source in range(15):
        away = steps_away(sequences, source, 15)
        found = tgh.rings(graph.edges, source, depth=3)
        assert [ring.tolist() for ring in found] == [
            sorted(item for item, steps in away.items() if steps == wanted) for wanted in (1, 2, 3)
        ]


def test_an_edge_weighs_by_its_count_against_the_heaviest_of_its_item():
    """0 -> 1 three times, 0 -> 2 once, 1 -> 2 once: log 4, log 2, log 2."""
    graph = tgh.build_graph([[0, 1], [0, 1, 2], [0, 1], [0, 2]], np.eye(3))
    assert graph.weights.toarray() == pytest.approx(np.array([[0, 1, 0.5], [0, 0, 1], [0, 0, 0]]))


def test_nearer_rings_come_first_whatever_the_texts_say_and_the_rest_follows_by_text():
    """From item 1: 2, then 3, then 4; items 5 and 0 are no step away, 5 reads like item 1."""
    texts = np.array([[0.0, 1], [1, 0], [-1, 0], [-1, 0.1], [0, 1], [1, 0.1]])
    assert ranked(tgh.build_graph(LINE, texts), (1,)) == [2, 3, 4, 1, 5, 0]


def test_texts_order_a_ring_and_a_heavy_edge_outweighs_them_as_alpha_says():
    """Item 2 follows item 0 four times, item 1 once; item 1 reads like item 0."""
    texts = np.array([[1.0, 0], [1, 0], [0, 1]])
    graph = tgh.build_graph([[0, 1], [0, 2], [0, 2], [0, 2], [0, 2]], texts)
    assert ranked(graph, (0,), alpha=0.0)[0] == 1
    assert ranked(graph, (0,), alpha=5.0)[0] == 2


def test_a_ring_has_its_share_and_its_other_items_stand_behind_all_shares():
    """Ring 1 has nine items (1 to 9) for a share of 7, ring 2 four (10 to 13) for a share of 2."""
    sequences = [[0, item] for item in range(1, 10)] + [[9, item] for item in range(10, 14)]
    graph = tgh.build_graph(sequences, np.ones((14, 1)))
    assert ranked(graph, (0,)) == [1, 2, 3, 4, 5, 6, 7, 10, 11, 8, 9, 12, 13, 0]


def test_the_second_variant_also_looks_around_the_item_before_and_takes_nothing_twice():
    """1 is followed by 2 and 3, 0 by 2, 4 and 5: 2 and 3 are taken when 0 is looked up."""
    graph = tgh.build_graph([[1, 2], [1, 3], [0, 2], [0, 4], [0, 5]], np.ones((6, 1)))
    assert ranked(graph, (0, 1), variant=2)[:4] == [2, 3, 4, 5]
    assert ranked(graph, (1,), variant=2)[:2] == [2, 3]


def test_items_that_must_not_be_ranked_take_up_no_place():
    """Seven of ring 1's nine items are in the history: the other two come, then ring 2."""
    sequences = [[0, item] for item in range(1, 10)] + [[9, 10]]
    graph = tgh.build_graph(sequences, np.ones((11, 1)))
    history = (*range(1, 8), 0)
    assert ranked(graph, history, again=False)[:3] == [8, 9, 10]
    assert ranked(graph, history, again=True)[:8] == [1, 2, 3, 4, 5, 6, 7, 10]


def test_equals_are_ordered_by_the_given_order():
    graph = tgh.build_graph([[0, 1], [0, 2]], np.ones((3, 1)))
    scores = tgh.tgh(graph, np.array([2, 1, 0]), 1, 0.5, True).scores([(0,)])[0]
    assert scores[2] > scores[1] > scores[0]
