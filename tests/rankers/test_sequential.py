"""Next-item networks and what trains them. Run: python -m pytest tests/rankers/test_sequential.py"""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from minionerec.catalogue.samples import Sample, Samples
from minionerec.errors import UserError
from minionerec.evaluation.metrics import row_metrics
from minionerec.experiment.settings import BaselineSettings
from minionerec.rankers import fitting, scores, sequential
from minionerec.rankers.networks import NETWORKS

NUM_ITEMS, MAX_HISTORY = 9, 4
SMALL = BaselineSettings(
    hidden_size=[16], epochs=25, dropout=[0.1], learning_rate=[0.01], batch_size=16, patience=5
)
KINDS = list(NETWORKS)


def ring_samples(num_users=60, num_items=NUM_ITEMS, seed=0):
    """Everybody walks round a ring of items, two steps at a time; valid and test ask for the next
    step.
    """
    rng = np.random.default_rng(seed)
    starts = rng.integers(num_items, size=num_users)
    sequences = [
        [int(start + 2 * step) % num_items for step in range(rng.integers(2, 9))]
        for start in starts
    ]
    held_out = [
        Sample(f"u{n}", tuple(sequence[-MAX_HISTORY:]), (sequence[-1] + 2) % num_items, 0)
        for n, sequence in enumerate(sequences)
    ]
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(num_items)]})
    return Samples(items, {"train": [], "valid": held_out[:30], "test": held_out[30:]}, sequences)


def untrained(kind="sasrec", seed=0, dropout=0.0, **changes):
    torch.manual_seed(seed)
    shape = {
        "num_items": NUM_ITEMS,
        "max_history": MAX_HISTORY,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
    } | changes
    return NETWORKS[kind](**shape, dropout=dropout)


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    """The model, what it logged, its samples and its kind."""
    samples = ring_samples()
    found = sequential.train(request.param, samples, 0, MAX_HISTORY, SMALL)
    return found.model, found.log, samples, request.param


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_a_ring_is_learnt_and_test_users_get_their_next_step_first(trained):
    model, _, samples, _ = trained
    best = sequential.score(model, [sample.history for sample in samples.splits["test"]]).argmax(
        dim=1
    )
    assert best.tolist() == [sample.target for sample in samples.splits["test"]]


def test_scores_are_log_probabilities_over_the_catalogue(trained):
    scores = sequential.score(trained[0], [(0,), (1, 2, 3)])
    assert scores.shape == (2, NUM_ITEMS)
    assert scores.exp().sum(dim=1) == pytest.approx(torch.ones(2))


def test_a_history_scores_the_same_alone_and_beside_longer_ones(trained):
    histories = [(3,), (5, 1), (2, 4, 6, 8), (7, 0, 7)]
    together = sequential.score(trained[0], histories)
    alone = torch.cat([sequential.score(trained[0], [history]) for history in histories])
    assert torch.allclose(together, alone, atol=1e-5)


def test_only_the_latest_items_are_read_and_all_of_them(trained):
    recent = (2, 4, 6, 8)
    assert torch.equal(
        sequential.score(trained[0], [(1, 1, *recent)]), sequential.score(trained[0], [recent])
    )
    assert not torch.allclose(
        sequential.score(trained[0], [(5, *recent[1:])]), sequential.score(trained[0], [recent])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_later_items_never_change_what_an_earlier_position_predicts(kind):
    model = untrained(kind).eval()
    items = torch.randint(NUM_ITEMS, (8, MAX_HISTORY))
    changed = torch.cat([items[:, :2], (items[:, 2:] + 1) % NUM_ITEMS], dim=1)
    assert torch.equal(model.hidden(items)[:, :2], model.hidden(changed)[:, :2])
    assert not torch.allclose(model.hidden(items)[:, 2:], model.hidden(changed)[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_surprise_at_every_next_item(kind):
    """Reference: each target on its own, with exactly the items before it, no padding and no batch."""
    model, rows = untrained(kind), [[0, 1, 2], [3, 4], [5, 6, 7, 8, 0]]
    prefixes = [(row[:end], row[end]) for row in rows for end in range(1, len(row))]
    surprise = [-sequential.score(model, [prefix])[0, target].item() for prefix, target in prefixes]
    loss = sequential.train_step(model, torch.optim.SGD(model.parameters(), lr=0.0), rows)
    assert loss == pytest.approx(np.mean(surprise), rel=1e-5)


def test_the_loss_and_its_gradient_are_the_same_in_parts_as_at_once(monkeypatch):
    """Of a catalogue whose logits are made part by part: two targets at a time, one in the last."""
    rows = [[0, 1, 2], [3, 4], [5, 6, 7]]  # five targets
    found = []
    for numbers in (2**28, 2 * NUM_ITEMS):
        monkeypatch.setattr(sequential, "LOGITS_AT_ONCE", numbers)
        model = untrained("sasrec")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(0)  # of the dropout
        loss = sequential.train_step(model, optimizer, rows)
        found.append((loss, [weight.grad.clone() for weight in model.parameters()]))
    (at_once, gradients), (in_parts, others) = found
    assert in_parts == pytest.approx(at_once, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.allclose(gradient, other, atol=1e-7)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_padding_carries_no_target():
    items, targets = sequential.batch([[1, 2], [3, 4, 5]], torch.device("cpu"))
    assert items.tolist() == [[1, 0], [3, 4]]
    assert targets.tolist() == [[2, sequential.IGNORED], [4, 5]]


def test_validation_ndcg_is_that_of_the_metrics(trained, monkeypatch):
    model, samples = untrained(trained[3], seed=3), trained[2].splits["valid"]
    ranked = sequential.score(model, [sample.history for sample in samples]).argsort(
        dim=1, descending=True
    )
    records = [
        {
            "user_id": sample.user_id,
            "target_item_id": str(sample.target),
            "item_ids": [str(i) for i in row],
        }
        for sample, row in zip(samples, ranked.tolist(), strict=True)
    ]
    expected = row_metrics(records)[0]["NDCG@10"].mean()
    assert sequential.mean_ndcg_at_10(model, samples) == pytest.approx(expected)
    monkeypatch.setattr(scores, "BLOCK_NUMBERS", 7 * NUM_ITEMS)  # seven rows at once
    assert sequential.mean_ndcg_at_10(model, samples) == pytest.approx(expected)


def test_the_weights_returned_are_those_of_the_best_validation_epoch(trained):
    model, log, samples, _ = trained
    logged = [row["valid_NDCG@10"] for row in log]
    assert sequential.mean_ndcg_at_10(model, samples.splits["valid"]) == max(logged)
    assert len(log) == 1 + logged.index(max(logged)) + SMALL.patience


def test_without_validation_rows_every_epoch_is_run():
    samples, log = ring_samples(), []
    settings = BaselineSettings(hidden_size=[16], dropout=[0.1], epochs=3)
    without = Samples(samples.items, {**samples.splits, "valid": []}, samples.train_sequences)
    sequential.train("sasrec", without, 0, MAX_HISTORY, settings, log.append)
    assert [sorted(row) for row in log] == [["epoch", "loss", "step"]] * 3


def test_training_never_looks_at_test_or_at_train_targets_outside_the_sequences(trained):
    """The test split is not even there; the weights are the same to the last bit."""
    samples = trained[2]
    without = Samples(samples.items, {"valid": samples.splits["valid"]}, samples.train_sequences)
    assert torch.equal(
        weights(sequential.train(trained[3], without, 0, MAX_HISTORY, SMALL).model),
        weights(trained[0]),
    )


def test_the_seed_decides_the_weights_and_the_callers_random_state_is_left_alone():
    samples, settings = ring_samples(), BaselineSettings(hidden_size=[16], dropout=[0.1], epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, other = (
        sequential.train("sasrec", samples, seed, MAX_HISTORY, settings).model for seed in (1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    assert torch.equal(
        weights(sequential.train("sasrec", samples, 1, MAX_HISTORY, settings).model), weights(first)
    )
    assert not torch.equal(weights(first), weights(other))


def test_scoring_ignores_dropout_and_gives_the_mode_back():
    model = untrained(dropout=0.5).train()
    assert torch.equal(sequential.score(model, [(1, 2)]), sequential.score(model, [(1, 2)]))
    assert model.training


def test_a_saved_model_scores_the_same_to_the_last_bit(trained, tmp_path):
    sequential.save(trained[3], trained[0], tmp_path)
    again = sequential.load(trained[3], tmp_path)
    histories = [(1,), (2, 3, 4)]
    assert torch.equal(sequential.score(again, histories), sequential.score(trained[0], histories))


def test_loading_from_an_empty_folder_names_the_file(tmp_path):
    with pytest.raises(
        UserError,
        match=f"^{re.escape(str(tmp_path / 'sasrec.json'))} not found; expected a sasrec model as ",
    ):
        sequential.load("sasrec", tmp_path)


def test_output_and_input_share_the_item_embedding():
    model = untrained()
    hidden = torch.randn(2, 16)
    assert torch.allclose(
        model.logits(hidden), F.linear(hidden, model.items.weight, model.bias), atol=1e-6
    )
    assert sum(value.numel() == NUM_ITEMS * 16 for value in model.parameters()) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"learning_rate": [1e30]},
            r"^sasrec: the loss is (nan|inf) in epoch \d; lower its learning rate$",
        ),
        ({"heads": 3}, r"^baselines.heads: got 3, expected a divisor of baselines.hidden_size 16$"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        sequential.train(
            "sasrec",
            ring_samples(),
            0,
            MAX_HISTORY,
            BaselineSettings(hidden_size=[16], epochs=2, **settings),
        )


def test_sequences_of_single_items_are_refused():
    samples = ring_samples()
    with pytest.raises(
        UserError,
        match="^sasrec: no user has two train interactions, so there is nothing to learn from",
    ):
        sequential.train("sasrec", Samples(samples.items, samples.splits, [[1], [2]]), 0)


def test_the_combination_that_ranks_validation_rows_best_is_kept_and_all_are_reported():
    """A step size of 1e-6 learns nothing in 10 epochs, wherever it stands among the values to try."""
    settings = BaselineSettings(
        hidden_size=[16], epochs=10, dropout=[0.1], learning_rate=[1e-6, 0.01], batch_size=16
    )
    found = sequential.train("sasrec", ring_samples(), 0, MAX_HISTORY, settings)
    assert [row["learning_rate"] for row in found.tried] == [1e-6, 0.01]
    assert found.chosen == max(found.tried, key=lambda row: row["valid_NDCG@10"])
    assert found.chosen["learning_rate"] == 0.01
    assert found.log[found.chosen["epoch"] - 1]["valid_NDCG@10"] == found.chosen["valid_NDCG@10"]
    again = BaselineSettings(
        hidden_size=[16], epochs=10, dropout=[0.1], learning_rate=[0.01], batch_size=16
    )
    assert torch.equal(
        weights(found.model),
        weights(sequential.train("sasrec", ring_samples(), 0, MAX_HISTORY, again).model),
    )


def test_batches_hold_every_row_once_and_rows_of_similar_length_together():
    rows = [[0] * length for length in np.random.default_rng(0).integers(1, 30, size=64)]
    batches = fitting.cut_batches(rows, 8, np.random.default_rng(1))
    assert sorted(len(row) for batch in batches for row in batch) == sorted(map(len, rows))
    assert all(len(batch) == 8 for batch in batches)
    spread = [max(map(len, batch)) - min(map(len, batch)) for batch in batches]
    assert max(spread) <= 8


def test_the_bias_of_hstu_depends_on_the_distance_only():
    """With one head, one block and zero projections for key and query, weights are SiLU(bias of the
    distance) / items summed.
    """
    model = untrained("hstu", num_layers=1, num_heads=1, hidden_size=4).eval()
    block = model.blocks[0]
    with torch.no_grad():
        block.distance.copy_(torch.tensor([[0.5, -1.0, 2.0, 3.0]]))
        block.project.weight.zero_()
        block.project.bias.copy_(
            torch.cat([torch.ones(8), torch.zeros(8)])
        )  # gate and value constant
        block.before, block.after, block.output = (
            torch.nn.Identity(),
            torch.nn.Identity(),
            torch.nn.Identity(),
        )
    bias = F.silu(torch.tensor([0.5, -1.0, 2.0]))
    one = F.silu(torch.tensor(1.0))
    expected = torch.stack([bias[:steps].sum() / steps for steps in (1, 2, 3)]) * one * one
    assert torch.allclose(block(torch.zeros(1, 3, 4))[0], expected[:, None].expand(3, 4))
