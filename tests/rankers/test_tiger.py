"""TIGER, the encoder-decoder baseline. Run: python -m pytest tests/rankers/test_tiger.py"""

import itertools

import pytest
import torch

from minionerec.catalogue.samples import Sample, Samples
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import BaselineSettings
from minionerec.model.beam_search import constrained_beam_search
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


def with_train_rows(samples: Samples) -> Samples:
    """The ring's samples with a train sample for every item of every sequence but the first."""
    rows = [
        Sample(f"u{n}", tuple(sequence[max(0, end - 4) : end]), sequence[end], end)
        for n, sequence in enumerate(samples.train_sequences)
        for end in range(1, len(sequence))
    ]
    return Samples(samples.items, {**samples.splits, "train": rows}, samples.train_sequences)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return tiger.new_model(tiger.Vocabulary(SIDS), SMALL, dropout=0.1).eval()


def test_a_ring_is_learnt_from_train_samples_and_the_best_epoch_is_kept():
    """A random order of nine items has NDCG@10 .47."""
    samples = with_train_rows(ring_samples())
    trained = tiger.train(samples, SIDS, 0, SMALL)
    assert trained.log[0]["valid_NDCG@10"] < 0.6
    assert (
        trained.chosen["valid_NDCG@10"] == max(row["valid_NDCG@10"] for row in trained.log) > 0.75
    )
    assert tiger.validator(trained.model, samples, SIDS, 0)() == trained.chosen["valid_NDCG@10"]


def test_scores_are_the_log_probabilities_of_whole_sids_read_alone(untrained):
    """Reference: one forward per item with the decoder's tokens written out, ranked exhaustively."""
    sample, vocabulary = Sample("u7", (1, 4, 2), 0, 0), tiger.Vocabulary(SIDS)
    ids, mask = tiger.pad([vocabulary.prompt(sample)], untrained.device)
    expected = []
    for item, sid in enumerate(vocabulary.sids):
        logits = untrained(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=torch.tensor([[tiger.PAD, *sid[:-1]]]),
        ).logits[0]
        expected.append(
            (
                sum(
                    row.log_softmax(-1)[token].item()
                    for row, token in zip(logits, sid, strict=True)
                ),
                item,
            )
        )
    items, scores = tiger.rank(untrained, [sample], SIDS, num_beams=9)
    assert items[0] == [item for _, item in sorted(expected, reverse=True)]
    assert scores[0] == pytest.approx(
        sorted((value for value, _ in expected), reverse=True), abs=1e-4
    )


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


def test_the_user_and_the_whole_history_are_read_and_the_target_is_not():
    vocabulary = tiger.Vocabulary(SIDS)
    first, other = (vocabulary.prompt(Sample(user, (1, 2), 5, 0)) for user in ("u1", "u2"))
    assert first[1:] == other[1:] == [*vocabulary.sids[1], *vocabulary.sids[2], tiger.END]
    assert first[0] != other[0]
    assert first == vocabulary.prompt(Sample("u1", (1, 2), 8, 0))


def test_training_never_looks_at_test_and_leaves_the_callers_random_state_alone():
    samples = with_train_rows(ring_samples())
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
        tiger.train(data, SIDS, 3, settings).model.state_dict() for data in (samples, without)
    ]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_search_that_ranks_is_the_models_own(untrained):
    """The decoder serves ``constrained_beam_search`` like any other: beams of its batch are those of each prompt alone."""
    vocabulary = tiger.Vocabulary(SIDS)
    trie = SidTrie(SIDS.codes, vocabulary.level_tokens)
    prompts = [vocabulary.prompt(Sample("u", history, 0, 0)) for history in ((1, 2, 3), (4,))]
    with torch.inference_mode():
        both = constrained_beam_search(tiger.EncoderDecoder(untrained), prompts, trie, 4)
        one = constrained_beam_search(tiger.EncoderDecoder(untrained), prompts[1:], trie, 4)
    assert torch.equal(both.leaves[1], one.leaves[0])
