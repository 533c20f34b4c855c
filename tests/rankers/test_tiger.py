"""TIGER, the encoder-decoder baseline. Run: python -m pytest tests/rankers/test_tiger.py"""

import copy
import itertools

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from minionerec.catalogue.samples import Sample, Samples
from minionerec.catalogue.sids import SidTable
from minionerec.experiment.settings import BaselineSettings
from minionerec.rankers import tiger
from tests.rankers.test_sequential import ring_samples

SIDS = SidTable([f"i{n}" for n in range(9)], [(n % 3, n // 3) for n in range(9)], [3, 3], "digest")
SHARED = SidTable(
    [f"i{n}" for n in range(9)], [(n % 3, n // 6) for n in range(9)], [3, 3], "digest"
)  # 0 and 3 share one
SMALL = BaselineSettings(
    tiger_hidden_size=32,
    tiger_layers=1,
    tiger_epochs=14,
    tiger_dropout=[0.0],
    tiger_learning_rate=[3e-3],
    tiger_batch_size=16,
    patience=14,
)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return tiger.new_model(tiger.Vocabulary(SIDS), SMALL, dropout=0.1).eval()


def test_a_ring_is_learnt_from_train_samples_and_the_best_epoch_is_kept():
    """A random order of nine items has NDCG@10 .47."""
    samples = ring_samples()
    trained = tiger.train(samples, SIDS, 0, 4, SMALL)
    assert trained.log[0]["valid_NDCG@10"] < 0.6
    assert (
        trained.chosen["valid_NDCG@10"] == max(row["valid_NDCG@10"] for row in trained.log) > 0.75
    )
    assert tiger.validator(trained.model, samples, SIDS, 0)() == trained.chosen["valid_NDCG@10"]


def item_logps(model, history: tuple[int, ...]) -> list[float]:
    """Reference: transformers' own forward per item, softmax over the codes that may follow."""
    vocabulary = tiger.Vocabulary(SIDS)
    ids = torch.tensor([vocabulary.prompt(history)])
    states = tiger.encode(model, ids, levels=2)
    values = []
    for sid in vocabulary.sids.tolist():
        rows = model(
            encoder_outputs=BaseModelOutput(states),
            decoder_input_ids=torch.tensor([[tiger.PAD, sid[0]]]),
        ).logits[0]
        first = sorted({other[0] for other in vocabulary.sids.tolist()})
        second = sorted({other[1] for other in vocabulary.sids.tolist() if other[0] == sid[0]})
        values.append(
            rows[0, first].log_softmax(-1)[first.index(sid[0])].item()
            + rows[1, second].log_softmax(-1)[second.index(sid[1])].item()
        )
    return values


def test_scores_are_the_log_probabilities_of_whole_sids_read_alone(untrained):
    """Beams decoded as blocks of one row agree with one run of the decoder per item."""
    expected = item_logps(untrained, (1, 4, 2))
    items, scores = tiger.rank(untrained, [Sample("u7", (1, 4, 2), 0, 0)], SIDS, num_beams=9)
    assert items[0] == sorted(range(9), key=lambda item: -expected[item])
    assert scores[0] == pytest.approx(sorted(expected, reverse=True), abs=1e-4)


def test_the_loss_of_a_window_is_the_mean_over_its_targets_of_what_ranking_scores(untrained):
    """Targets of one window share one pass, yet each is scored from its own history alone."""
    window = (3, 1, 4, 7)
    expected = [-item_logps(untrained, window[:n])[window[n]] / 2 for n in (1, 2, 3)]
    model = copy.deepcopy(untrained)
    model.eval()
    found = tiger.train_step(
        model, torch.optim.SGD(model.parameters(), lr=0.0), tiger.Vocabulary(SIDS), [window]
    )
    assert found == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_padding_and_neighbours_do_not_change_a_loss(untrained):
    model = copy.deepcopy(untrained)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    vocabulary = tiger.Vocabulary(SIDS)
    windows = [(3, 1, 4, 7), (5, 2)]
    alone = [tiger.train_step(model, optimizer, vocabulary, [window]) for window in windows]
    together = tiger.train_step(model, optimizer, vocabulary, windows)
    assert together == pytest.approx((3 * alone[0] + alone[1]) / 4, abs=1e-5)


def test_an_item_never_sees_a_later_one(untrained):
    vocabulary = tiger.Vocabulary(SIDS)
    ids = torch.tensor([vocabulary.prompt((1, 2, 3)), vocabulary.prompt((1, 2, 8))])
    states = tiger.encode(untrained, ids, levels=2)
    assert torch.equal(states[0, :4], states[1, :4])
    assert not torch.allclose(states[0, 4:], states[1, 4:])
    first, other = (torch.tensor([vocabulary.prompt((item,))]) for item in (1, 4))
    assert first[0, 0] == other[0, 0]  # the same first code before another second one
    states = [tiger.encode(untrained, ids, levels=2)[0, 0] for ids in (first, other)]
    assert not torch.allclose(*states)


def test_sids_of_different_lengths_are_learnt_and_ranked_whole():
    short = SidTable(["a", "b", "c"], [(0,), (1, 0), (1, 1)], [2, 2], "digest")
    vocabulary = tiger.Vocabulary(short)
    assert vocabulary.prompt((0, 1)) == [1, tiger.PAD, 2, 3]
    torch.manual_seed(0)
    model = tiger.new_model(vocabulary, SMALL, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = [
        tiger.train_step(model, optimizer, vocabulary, [(0, 1, 2, 0, 1, 2)]) for _ in range(60)
    ]
    assert losses[-1] < 0.1 < losses[0]
    items, scores = tiger.rank(model, [Sample("u", (0, 1), 2, 0)], short, num_beams=5)
    assert items[0][0] == 2
    assert sorted(items[0]) == [0, 1, 2]
    assert sum(np.exp(scores[0])) == pytest.approx(1.0)


def test_a_history_ranks_the_same_alone_and_beside_longer_ones(untrained):
    rows = [
        Sample(f"u{n}", history, 0, 0)
        for n, history in enumerate([(3,), (5, 1), (2, 4, 6, 8), (7,)])
    ]
    together = tiger.rank(untrained, rows, SIDS, num_beams=5)
    alone = [tiger.rank(untrained, [row], SIDS, num_beams=5) for row in rows]
    assert together[0] == [items[0] for items, _ in alone]
    assert list(itertools.chain(*together[1])) == pytest.approx(
        [value for _, scores in alone for value in scores[0]], abs=1e-4
    )


def test_items_that_share_a_sid_stand_together_with_one_score(untrained):
    items, scores = tiger.rank(untrained, [Sample("u", (1,), 0, 0)], SHARED, num_beams=9)
    assert sorted(items[0]) == list(range(9))
    places = {item: place for place, item in enumerate(items[0])}
    assert abs(places[0] - places[3]) == 1
    assert scores[0][places[0]] == scores[0][places[3]]


def test_nothing_invalid_or_repeated_is_ranked_also_where_the_catalogue_is_smaller_than_the_beam(
    untrained,
):
    items, _ = tiger.rank(untrained, [Sample("u", (1, 1), 0, 0)], SIDS, num_beams=50)
    assert sorted(items[0]) == list(range(9))


def test_the_whole_history_is_read_and_neither_user_nor_target():
    vocabulary = tiger.Vocabulary(SIDS)
    assert vocabulary.prompt((1, 2)) == [*vocabulary.sids[1].tolist(), *vocabulary.sids[2].tolist()]


def test_training_never_looks_at_test_and_leaves_the_callers_random_state_alone():
    samples = ring_samples()
    settings = BaselineSettings(tiger_hidden_size=32, tiger_layers=1, tiger_epochs=1)
    without = Samples(
        samples.items,
        {key: samples.splits[key] for key in ("train", "valid")},
        samples.train_sequences,
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [
        tiger.train(data, SIDS, 3, 4, settings).model.state_dict() for data in (samples, without)
    ]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
