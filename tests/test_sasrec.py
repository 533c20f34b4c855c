"""SASRec. Run: python -m pytest tests/test_sasrec.py"""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from baselines import sasrec
from minionerec.config import UserError
from minionerec.dataset import Sample, Samples
from minionerec.metrics import row_metrics
from minionerec.settings import BaselineSettings

NUM_ITEMS, MAX_HISTORY = 9, 4
SMALL = BaselineSettings(sasrec_hidden_size=16, sasrec_epochs=25, sasrec_dropout=0.1, sasrec_learning_rate=0.01,
                         sasrec_batch_size=16, sasrec_patience=5)


def ring_samples(num_users=60, num_items=NUM_ITEMS, seed=0):
    """Everybody walks round a ring of items, two steps at a time; valid and test ask for the next step."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(num_items, size=num_users)
    sequences = [[int(start + 2 * step) % num_items for step in range(rng.integers(2, 9))] for start in starts]
    held_out = [Sample(f"u{n}", tuple(sequence[-MAX_HISTORY:]), (sequence[-1] + 2) % num_items, 0)
                for n, sequence in enumerate(sequences)]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(num_items)]})
    return Samples(items, {"train": [], "valid": held_out[:30], "test": held_out[30:]}, sequences)


def untrained(seed=0, dropout=0.0, **changes):
    torch.manual_seed(seed)
    shape = {"num_items": NUM_ITEMS, "max_history": MAX_HISTORY, "hidden_size": 16, "num_layers": 2, "num_heads": 2} | changes
    return sasrec.SASRec(**shape, dropout=dropout)


@pytest.fixture(scope="module")
def trained():
    """The model, what it logged, and its samples."""
    samples, log = ring_samples(), []
    return sasrec.train_sasrec(samples, 0, MAX_HISTORY, SMALL, log.append), log, samples


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_a_ring_is_learnt_and_test_users_get_their_next_step_first(trained):
    model, _, samples = trained
    best = sasrec.score(model, [sample.history for sample in samples.splits["test"]]).argmax(dim=1)
    assert best.tolist() == [sample.target for sample in samples.splits["test"]]


def test_scores_are_log_probabilities_over_the_catalogue(trained):
    scores = sasrec.score(trained[0], [(0,), (1, 2, 3)])
    assert scores.shape == (2, NUM_ITEMS)
    assert scores.exp().sum(dim=1) == pytest.approx(torch.ones(2))


def test_a_history_scores_the_same_alone_and_beside_longer_ones(trained):
    histories = [(3,), (5, 1), (2, 4, 6, 8), (7, 0, 7)]
    together = sasrec.score(trained[0], histories)
    alone = torch.cat([sasrec.score(trained[0], [history]) for history in histories])
    assert torch.allclose(together, alone, atol=1e-5)


def test_only_the_latest_items_are_read_and_all_of_them(trained):
    recent = (2, 4, 6, 8)
    assert torch.equal(sasrec.score(trained[0], [(1, 1, *recent)]), sasrec.score(trained[0], [recent]))
    assert not torch.allclose(sasrec.score(trained[0], [(5, *recent[1:])]), sasrec.score(trained[0], [recent]))


def test_later_items_never_change_what_an_earlier_position_predicts():
    model = untrained().eval()
    items = torch.randint(NUM_ITEMS, (8, MAX_HISTORY))
    changed = torch.cat([items[:, :2], (items[:, 2:] + 1) % NUM_ITEMS], dim=1)
    assert torch.equal(model.hidden(items)[:, :2], model.hidden(changed)[:, :2])
    assert not torch.allclose(model.hidden(items)[:, 2:], model.hidden(changed)[:, 2:])


def test_the_loss_is_the_mean_surprise_at_every_next_item():
    """Reference: each target on its own, with exactly the items before it, no padding and no batch."""
    model, rows = untrained(), [[0, 1, 2], [3, 4], [5, 6, 7, 8, 0]]
    prefixes = [(row[:end], row[end]) for row in rows for end in range(1, len(row))]
    surprise = [-sasrec.score(model, [prefix])[0, target].item() for prefix, target in prefixes]
    loss = sasrec.train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), rows)
    assert loss == pytest.approx(np.mean(surprise), rel=1e-5)


def test_padding_carries_no_target():
    items, targets = sasrec.batch([[1, 2], [3, 4, 5]], torch.device("cpu"))
    assert items.tolist() == [[1, 0], [3, 4]]
    assert targets.tolist() == [[2, sasrec.IGNORED], [4, 5]]


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 7), st.integers(0, 99))
def test_every_item_but_the_first_is_a_target_exactly_once(lengths, max_history, seed):
    sequences = [[(user, step) for step in range(length)] for user, length in enumerate(lengths)]
    cut = sasrec.windows(sequences, max_history, np.random.default_rng(seed))
    assert all(2 <= len(row) <= max_history + 1 for row in cut)
    assert sorted(item for row in cut for item in row[1:]) == sorted(item for sequence in sequences for item in sequence[1:])
    assert all(later == (user, step + 1) for row in cut for (user, step), later in zip(row, row[1:], strict=False))


def test_validation_ndcg_is_that_of_the_metrics(trained):
    model, samples = untrained(seed=3), trained[2].splits["valid"]
    ranked = sasrec.score(model, [sample.history for sample in samples]).argsort(dim=1, descending=True)
    records = [{"user_id": sample.user_id, "target_item_id": str(sample.target), "item_ids": [str(i) for i in row]}
               for sample, row in zip(samples, ranked.tolist(), strict=True)]
    expected = row_metrics(records)[0]["NDCG@10"].mean()
    assert sasrec.mean_ndcg_at_10(model, samples) == pytest.approx(expected)
    assert sasrec.mean_ndcg_at_10(model, samples, rows_at_once=7) == pytest.approx(expected)


def test_the_weights_returned_are_those_of_the_best_validation_epoch(trained):
    model, log, samples = trained
    logged = [row["valid_NDCG@10"] for row in log]
    assert sasrec.mean_ndcg_at_10(model, samples.splits["valid"]) == max(logged)
    assert len(log) == 1 + logged.index(max(logged)) + SMALL.sasrec_patience


def test_without_validation_rows_every_epoch_is_run():
    samples, log = ring_samples(), []
    settings = BaselineSettings(sasrec_hidden_size=16, sasrec_epochs=3)
    sasrec.train_sasrec(Samples(samples.items, {**samples.splits, "valid": []}, samples.train_sequences), 0, MAX_HISTORY,
                        settings, log.append)
    assert [sorted(row) for row in log] == [["epoch", "loss", "step"]] * 3


def test_training_never_looks_at_test_or_at_train_targets_outside_the_sequences(trained):
    """The test split is not even there; the weights are the same to the last bit."""
    samples = trained[2]
    without = Samples(samples.items, {"valid": samples.splits["valid"]}, samples.train_sequences)
    assert torch.equal(weights(sasrec.train_sasrec(without, 0, MAX_HISTORY, SMALL)), weights(trained[0]))


def test_the_seed_decides_the_weights_and_the_callers_random_state_is_left_alone():
    samples, settings = ring_samples(), BaselineSettings(sasrec_hidden_size=16, sasrec_epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, other = (sasrec.train_sasrec(samples, seed, MAX_HISTORY, settings) for seed in (1, 2))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    assert torch.equal(weights(sasrec.train_sasrec(samples, 1, MAX_HISTORY, settings)), weights(first))
    assert not torch.equal(weights(first), weights(other))


def test_scoring_ignores_dropout_and_gives_the_mode_back():
    model = untrained(dropout=0.5).train()
    assert torch.equal(sasrec.score(model, [(1, 2)]), sasrec.score(model, [(1, 2)]))
    assert model.training


def test_a_saved_model_scores_the_same_to_the_last_bit(trained, tmp_path):
    sasrec.save(trained[0], tmp_path / "model")
    again = sasrec.load(tmp_path / "model")
    histories = [(1,), (2, 3, 4)]
    assert torch.equal(sasrec.score(again, histories), sasrec.score(trained[0], histories))


def test_loading_from_an_empty_folder_names_the_file(tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / 'sasrec.json'))} not found; expected a SASRec model as "):
        sasrec.load(tmp_path)


def test_output_and_input_share_the_item_embedding():
    model = untrained()
    hidden = torch.randn(2, 16)
    assert torch.allclose(model.logits(hidden), F.linear(hidden, model.items.weight, model.bias), atol=1e-6)
    assert sum(value.numel() == NUM_ITEMS * 16 for value in model.parameters()) == 1


@pytest.mark.parametrize("settings, message", [
    ({"sasrec_learning_rate": 1e30}, r"^sasrec: the loss is (nan|inf) in epoch \d; lower baselines.sasrec_learning_rate$"),
    ({"sasrec_heads": 3}, r"^baselines.sasrec_heads: got 3, expected a divisor of baselines.sasrec_hidden_size 16$"),
])
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        sasrec.train_sasrec(ring_samples(), 0, MAX_HISTORY, BaselineSettings(sasrec_hidden_size=16, sasrec_epochs=2, **settings))


def test_sequences_of_single_items_are_refused():
    samples = ring_samples()
    with pytest.raises(UserError, match="^sasrec: no user has two train interactions, so there is nothing to learn from"):
        sasrec.train_sasrec(Samples(samples.items, samples.splits, [[1], [2]]), 0)
