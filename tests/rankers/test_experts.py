"""Rankers as probabilities: leave-one-out counts against counting again without the row."""

import numpy as np
import pandas as pd
import pytest

from minionerec.catalogue.rows import NO_TARGET
from minionerec.catalogue.samples import Sample, Samples
from minionerec.rankers import experts, rules

NUM_ITEMS = 9


def random_sequences(seed: int, users: int = 12) -> list[list[int]]:
    """Short sequences over few items, so that pairs and items repeat."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_ITEMS, rng.integers(2, 8)).tolist() for _ in range(users)]


def rows_of(sequences):
    """Every target with all that came before it: user, history, target."""
    for user, sequence in enumerate(sequences):
        for place in range(1, len(sequence)):
            yield user, tuple(sequence[:place]), sequence[place]


def markov_without(sequences, user, place, history, reach, backward, window):
    """Count every pair again but those that end in the row's target, then look up item by item."""
    matrix = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for number, sequence in enumerate(sequences):
        for later in range(len(sequence)):
            for earlier in range(max(0, later - reach), later):
                if (number, later) == (user, place):
                    continue
                step = 1.0 / (later - earlier)
                matrix[sequence[earlier], sequence[later]] += step
                matrix[sequence[later], sequence[earlier]] += backward * step
    latest = history[::-1][:window]
    return sum(matrix[item] / m for m, item in enumerate(latest, start=1))


@pytest.mark.parametrize(
    "reach, backward, window", [(10, 0.5, 3), (1, 0.0, 3), (3, 0.5, 10), (2, 0.0, 1)]
)
def test_markov_asked_leave_one_out_equals_counting_without_the_rows_transition(
    reach, backward, window
):
    sequences = random_sequences(reach)
    expert = experts.markov(sequences, NUM_ITEMS, reach=reach, backward=backward, window=window)
    for user, history, target in rows_of(sequences):
        expected = markov_without(sequences, user, len(history), history, reach, backward, window)
        expected = expected / max(expected.sum(), 1e-9)
        found = expert.probabilities([history], [target])[0]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_item_knn_asked_leave_one_out_does_not_count_the_rows_user():
    """Counted again without this user's pair with the target; the norms are everybody's."""
    sequences = [list(dict.fromkeys(sequence)) for sequence in random_sequences(5)]
    owners = [set(sequence) for sequence in sequences]
    holders = [sum(item in own for own in owners) for item in range(NUM_ITEMS)]
    expert = experts.item_knn(sequences, NUM_ITEMS, shrinkage=2.0, window=3)
    for user, history, target in rows_of(sequences):
        expected = np.zeros(NUM_ITEMS)
        for m, item in enumerate(history[::-1][:3], start=1):
            for other in range(NUM_ITEMS):
                both = sum(
                    item in own and other in own and item != other
                    for number, own in enumerate(owners)
                    if (number, other) != (user, target)
                )
                norm = np.sqrt(holders[item] * holders[other]) + 2.0
                expected[other] += both / norm / m
        expected = expected / max(expected.sum(), 1e-9)
        found = expert.probabilities([history], [target])[0]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_pair_that_only_the_row_itself_has_seen_gets_nothing():
    sequences = [[0, 1], [0, 2], [0, 2]]
    expert = experts.markov(sequences, 4, reach=1, backward=0.0, window=3)
    history, target = [(0,)], [1]
    assert expert.probabilities(history, target).tolist() == [[0.0, 0.0, 1.0, 0.0]]
    assert expert.probabilities(history, [2])[0].tolist() == [0.0, 0.5, 0.5, 0.0]
    assert expert.probabilities(history).tolist() == [[0.0, 1 / 3, 2 / 3, 0.0]]


def test_popularity_counts_a_rows_own_target_one_less():
    expert = experts.popularity(np.array([3, 1, 0]))
    assert expert.probabilities([(0,)], [1]).tolist() == [[1.0, 0.0, 0.0]]
    assert expert.probabilities([(0,)]).tolist() == [[0.75, 0.25, 0.0]]


def test_text_neighbours_are_a_softmax_over_cosines():
    embeddings = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    expert = experts.text_knn(embeddings, window=1, again=True, temperature=0.5)
    expected = np.exp(np.array([1.0, 0.0, np.sqrt(0.5)]) / 0.5)
    found = expert.probabilities([(1, 0)])
    np.testing.assert_allclose(found[0], expected / expected.sum())
    without = experts.text_knn(embeddings, window=1, again=False, temperature=0.5)
    assert without.probabilities([(1, 0)]).tolist() == [[0.0, 0.0, 1.0]]


def test_text_neighbours_of_several_items_are_those_of_their_weighted_mean():
    """The latest item counts 1, the one before it 1/2; the mean of the cosines, not their sum."""
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    expert = experts.text_knn(embeddings, window=2, again=True, temperature=0.5)
    latest, before = np.array([1.0, 0.0, 0.6]), np.array([0.0, 1.0, 0.8])
    expected = np.exp((latest + before / 2) / 1.5 / 0.5)
    found = expert.probabilities([(2, 1, 0)])
    np.testing.assert_allclose(found[0], expected / expected.sum())


def test_an_empty_history_tells_the_lookups_nothing():
    embeddings = np.eye(3)
    text = experts.text_knn(embeddings, window=3, again=True, temperature=0.1)
    chain = experts.markov([[0, 1, 2]], 3, reach=1, backward=0.0, window=3)
    for expert in (text, chain):
        assert expert.probabilities([()]).tolist() == [[0.0, 0.0, 0.0]]
    both = experts.mix([text, chain], [0.5, 0.5], [(0,)])
    assert both.sum() == pytest.approx(1.0)


def test_the_best_of_a_large_catalogue_are_those_of_its_whole_table(monkeypatch):
    """Asked leave-one-out and without, with histories of equal items, empty ones and equal texts."""
    monkeypatch.setattr(experts, "LENGTH", 3)
    sequences = random_sequences(7, users=40)
    embeddings = np.random.default_rng(3).normal(size=(NUM_ITEMS, 4))
    embeddings[5] = embeddings[2]  # the same text
    made = [
        experts.markov(sequences, NUM_ITEMS, reach=3, backward=0.5, window=3),
        experts.item_knn(sequences, NUM_ITEMS, shrinkage=2.0, window=3),
        experts.text_knn(embeddings, window=2, again=False, temperature=0.1),
        experts.popularity(np.arange(NUM_ITEMS)),
    ]
    histories = [history for _, history, _ in rows_of(sequences)] + [(), (4, 4)]
    targets = [target for _, _, target in rows_of(sequences)] + [NO_TARGET, 1]
    for expert in made:
        for own in (None, targets):
            mixes = []
            for small in (NUM_ITEMS, NUM_ITEMS - 1):
                monkeypatch.setattr(experts, "SMALL", small)
                mixes.append(experts.mix([expert], [1.0], histories, own).toarray())
            np.testing.assert_allclose(mixes[1], mixes[0], atol=1e-6)
            assert (np.count_nonzero(mixes[1], axis=1) < NUM_ITEMS).any()


def test_what_is_left_open_is_chosen_by_a_sample_of_many_validation_rows(monkeypatch, tmp_path):
    sequences = [[0, 1, 2], [0, 1, 2], [3, 1, 4], [3, 1, 4]]
    valid = [Sample("u", (0, 1), 2, 0), Sample("u", (3, 1), 4, 0)] * 50
    items = pd.DataFrame({"item_id": [str(item) for item in range(5)]})
    seen = []
    monkeypatch.setattr(experts, "CHOSEN_BY", 2)
    choose = rules.choose

    def choosing(candidates, rows, *rest):
        seen.append(len(rows))
        return choose(candidates, rows, *rest)

    monkeypatch.setattr(rules, "choose", choosing)
    samples = Samples(items, {"valid": valid}, sequences)
    experts.build(["markov"], samples, embeddings_file=tmp_path / "none", temperature=0.1)
    assert seen == [2]
