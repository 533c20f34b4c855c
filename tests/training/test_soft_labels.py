"""Soft labels: whose answers count how much, and what the teacher may know."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import sft
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import Label, Row, mixture
from minionerec.catalogue.samples import Samples, build_samples
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.stages import stage_path
from minionerec.model.policy import Policy
from minionerec.rankers import experts
from minionerec.training import soft_labels
from minionerec.training.collate import collate_sft
from minionerec.training.likelihood import sft_logp
from tests.worlds import random_catalogue, tiny_model, tiny_run

TOKENS = [list(range(10, 15)), list(range(15, 20))]
SIDS = random_catalogue(1, 16, 2, 5)
FOUR_BEST = soft_labels.Recipe.of({"top_k": 4, "sharpness": 1.0})
EIGHT_BEST = soft_labels.Recipe.of({"top_k": 8, "sharpness": 1.0})
ITEMS = [(item,) for item in range(8)]  # a history of every item alone


def completion(item: int) -> list[int]:
    """The item's SID and the end of the sequence."""
    return [TOKENS[level][code] for level, code in enumerate(SIDS[item])] + [0]


class Renderer:
    """As much of the real one as labels need."""

    def completion(self, _task: str, item: int) -> list[int]:
        return completion(item)


def rows_with_labels() -> list[Row]:
    """Two rows with further answers (one names its target again), one without, one of text."""
    rows = []
    for number, (target, others) in enumerate([(3, {3: 0.5, 7: 0.25, 9: 0.25}), (5, {1: 1.0})]):
        row = Row("sid_to_sid", "u", [1, 2 + number], completion(target), target, (0,))
        items, weights = np.array(list(others)), np.array(list(others.values()))
        labels = soft_labels.answers(row, items, weights, Renderer())
        rows.append(Row(row.task, "u", row.prompt, row.completion, target, (0,), labels))
    rows.append(Row("sid_to_sid", "u", [1, 4], completion(7), 7, (0,)))
    rows.append(Row("sid_to_title", "", [1, 5], [30, 31, 0], 5))
    return rows


def logp_of(model, row: Row, tokens: list[int], normalize: str) -> float:
    """Log-probability of one answer from a forward of its own."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.prompt + tokens])).logits[0]
    total = 0.0
    for place, token in enumerate(tokens):
        given = logits[len(row.prompt) - 1 + place]
        if normalize == "trie" and row.task == "sid_to_sid":
            if token == 0:
                continue
            before = tuple(tokens[:place])
            legal = {completion(i)[place] for i in range(16) if completion(i)[:place] == [*before]}
            legal = sorted(legal)
            total += given[legal].log_softmax(-1)[legal.index(token)].item()
        else:
            total += given.log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("normalize", ["vocab", "trie"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_is_a_weighted_sum_over_answers_each_read_in_a_forward_of_its_own(
    normalize, weight
):
    model, rows = tiny_model("qwen2", 40), rows_with_labels()
    trie = SidTrie(SIDS, TOKENS)
    paths = [trie.item_path(item) for item in range(16)]
    batch = collate_sft(rows, trie=trie if normalize == "trie" else None, paths=paths)
    expected = 0.0
    for row in rows:
        for label in row.labels or [Label(row.target_item, row.completion, 1.0, 1.0)]:
            share = (1 - weight) * label.own + weight * label.teacher
            expected += share * logp_of(model, row, label.completion, normalize)
    found = sft_logp(model, batch, weight).item()
    assert found == pytest.approx(expected, abs=1e-4)
    # what the loss is divided by: the tokens of the targets, however many answers the rows have
    assert len(batch["shift_labels"]) == (3 * 3 if normalize == "vocab" else 3 * 2) + 3


def test_the_answers_of_a_row_name_every_item_once_and_both_weights_add_up_to_one():
    first, second, alone, _ = rows_with_labels()
    assert [(label.item, label.own, label.teacher) for label in first.labels] == [
        (3, 1.0, 0.5),
        (7, 0.0, 0.25),
        (9, 0.0, 0.25),
    ]
    assert [(label.item, label.own, label.teacher) for label in second.labels] == [
        (5, 1.0, 0.0),
        (1, 0.0, 1.0),
    ]
    assert alone.labels == ()


def test_cutting_a_batch_into_pieces_changes_no_sum():
    """So micro-batches and processes change no step."""
    model, rows = tiny_model("qwen2", 40), rows_with_labels()
    trie = SidTrie(SIDS, TOKENS)
    paths = [trie.item_path(item) for item in range(16)]
    sums = []
    for cut in ([rows], [rows[:1], rows[1:]], [[row] for row in rows]):
        batches = [collate_sft(piece, trie=trie, paths=paths) for piece in cut]
        logps = [sft_logp(model, batch, 0.5).item() for batch in batches]
        sums.append((sum(logps), sum(len(batch["shift_labels"]) for batch in batches)))
    for total, counted in sums:
        assert total == pytest.approx(sums[0][0], abs=1e-4)
        assert counted == sums[0][1]


# ------------------------------------------------------------------ what a teacher may know


def chain_of_users(heldout: int) -> Samples:
    """Nine users go 0 -> 1 -> 2, one 0 -> 3 -> 2; their valid and test targets are ``heldout``."""
    rows = []
    for user in range(10):
        for step, item in enumerate([0, 3 if user == 9 else 1, 2]):
            rows.append((f"u{user}", f"i{item}", step, "train"))
        rows.append((f"u{user}", f"i{heldout}", 3, "valid"))
        rows.append((f"u{user}", f"i{heldout}", 4, "test"))
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"])
    splits, sequences = build_samples(interactions, {f"i{n}": n for n in range(8)}, 10)
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(8)]})
    return Samples(items, splits, sequences)


def labels_of(samples: Samples, names=("markov", "item_knn", "popularity")) -> soft_labels.Labels:
    teacher = experts.build(names, samples, embeddings_file=Path("nowhere"), temperature=0.1)
    train = samples.splits["train"]
    return soft_labels.teacher_labels(
        teacher,
        [1.0] * len(teacher),
        [sample.history for sample in train],
        [sample.target for sample in train],
        FOUR_BEST,
        exclude_history=False,
    )


def test_a_teacher_never_knows_the_rows_own_transition():
    """One user alone goes from 0 to 3: for that row the teacher says 1 as for all, and never 3."""
    samples = chain_of_users(heldout=2)
    found = labels_of(samples, names=("markov", "item_knn"))
    rare = [i for i, sample in enumerate(samples.splits["train"]) if sample.target == 3]
    assert len(rare) == 1
    assert 3 not in found.items[rare[0]]
    assert found.items[rare[0], 0] == 1


def test_no_held_out_row_reaches_a_label():
    """Whatever valid and test rows hold, labels are the same and never name what only they have."""
    first, second = labels_of(chain_of_users(heldout=6)), labels_of(chain_of_users(heldout=7))
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.weights, second.weights)
    assert not np.isin(first.items, [6, 7]).any()


def test_with_exclude_history_no_label_names_what_the_row_shows():
    samples = chain_of_users(heldout=2)
    teacher = [experts.popularity(np.arange(8.0) + 1)]
    histories = [sample.history for sample in samples.splits["train"]]
    targets = [sample.target for sample in samples.splits["train"]]
    for exclude in (True, False):
        found = soft_labels.teacher_labels(
            teacher, [1.0], histories, targets, EIGHT_BEST, exclude_history=exclude
        )
        shown = [
            set(row) & set(history)
            for row, history in zip(found.items.tolist(), histories, strict=True)
        ]
        assert any(shown) is not exclude
        np.testing.assert_allclose(found.weights.sum(axis=1), 1.0)


def test_a_row_of_one_item_is_taught_by_the_whole_table_of_what_follows_it():
    """Nine users go on from 0 to 1, one to 3, with 2 after that: nothing is left out of it."""
    samples = chain_of_users(heldout=6)
    chain = experts.markov(samples.train_sequences, 8, reach=1, backward=0.0, window=3)
    rows = soft_labels.teacher_rows(
        ITEMS, [chain], [1.0], FOUR_BEST, OneToken(), exclude_history=False
    )
    assert [row.history for row in rows] == [(0,), (1,), (3,)]
    first = rows[0]
    assert [(label.item, label.own) for label in first.labels] == [(1, 0.9), (3, 0.1)]
    assert all(label.own == label.teacher for row in rows for label in row.labels)
    sharper = soft_labels.Recipe.of({"top_k": 4, "sharpness": 2.0})
    sharp = soft_labels.teacher_rows(
        ITEMS, [chain], [1.0], sharper, OneToken(), exclude_history=False
    )
    weights = [label.teacher for label in sharp[0].labels]
    assert weights == pytest.approx([0.81 / 0.82, 0.01 / 0.82])
    assert (first.prompt, first.completion, first.target_item) == ([0], [1, 0], 1)


def test_rows_of_pairs_are_what_the_teacher_makes_of_both_items_and_every_pair_comes_once():
    """0 -> 1 and 0 -> 3 are drawn, but nothing follows 2, in which the other pairs end."""
    samples = chain_of_users(heldout=6)
    pairs = soft_labels.drawn_pairs(samples.train_sequences, 100, seed=1)
    assert sorted(pairs) == [(0, 1), (0, 3), (1, 2), (3, 2)]
    assert soft_labels.drawn_pairs(samples.train_sequences, 2, seed=1) == pairs[:2]
    assert soft_labels.drawn_pairs(samples.train_sequences, 0, seed=1) == []
    # window 1: nine went from 1 to 2; window 2: halves of the nine and the one after 0 join in
    for window, expected in ((1, [(2, 1.0)]), (2, [(2, 9 / 14), (1, 4.5 / 14), (3, 0.5 / 14)])):
        chain = experts.markov(samples.train_sequences, 8, reach=1, backward=0.0, window=window)
        row = soft_labels.teacher_rows(
            [(0, 1)], [chain], [1.0], FOUR_BEST, OneToken(), exclude_history=False
        )[0]
        assert (row.prompt, row.history) == ([0, 1], (0, 1))
        found = [(label.item, label.teacher) for label in row.labels]
        assert [item for item, _ in found] == [item for item, _ in expected]
        weights = [weight for _, weight in found]
        assert weights == pytest.approx([weight for _, weight in expected])


def test_an_open_history_is_all_that_train_has_of_a_user_and_nothing_that_is_held_out():
    """Whatever is valid or test, histories and answers are the same; a row's answers are the
    table's.
    """
    rows_of = []
    for heldout in (6, 7):
        samples = chain_of_users(heldout)
        found = soft_labels.ends_of_users(samples.splits["train"], max_history=2)
        assert found == {f"u{user}": (3 if user == 9 else 1, 2) for user in range(10)}
        longer = soft_labels.ends_of_users(samples.splits["train"], max_history=10)
        assert longer["u9"] == (0, 3, 2)
        teacher = experts.build(
            ["markov", "item_knn"], samples, embeddings_file=Path("nowhere"), temperature=0.1
        )
        rows = soft_labels.teacher_rows(
            list(found.values()),
            teacher,
            [0.5, 0.5],
            FOUR_BEST,
            OneToken(),
            exclude_history=False,
            users=list(found),
        )
        assert [row.user_id for row in rows] == [f"u{user}" for user in range(10)]
        rows_of.append(rows)
    assert rows_of[0] == rows_of[1]
    named = {label.item for rows in rows_of for row in rows for label in row.labels}
    assert named <= {0, 1, 2, 3}


class OneToken:
    """Prompts and completions of one token per item."""

    def prompt(self, _task: str, shown: tuple[int, ...]) -> list[int]:
        return list(shown)

    def completion(self, _task: str, item: int) -> list[int]:
        return [item, 0]


@pytest.mark.parametrize(
    "task, history, takes",
    [
        ("sid_to_sid", (0, 1), True),
        ("titles_to_sid", (0, 1), True),
        ("sids_to_title", (0, 1), False),
        ("title_to_sid", (), False),
        ("sid_to_title", (), False),
    ],
)
def test_rows_that_ask_for_the_very_item_they_show_or_for_a_title_keep_their_one_answer(
    task, history, takes
):
    assert soft_labels.takes_labels(Row(task, "u", [1], completion(2), 2, history)) is takes


def test_a_teachers_weight_is_constant_for_half_of_the_steps_then_goes_to_its_end():
    recipe = soft_labels.Recipe.of({"weight": 0.5, "final_weight": 0.1})
    weights = [recipe.weight_at(done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert weights == pytest.approx([0.5, 0.5, 0.5, 0.3, 0.1])


def test_rows_of_items_are_there_as_often_as_the_recipe_says(tmp_path):
    catalogue = Catalogue.open(tiny_run(tmp_path, sft={"teacher": {"markov": 1.0}}))
    policy = Policy.create(catalogue)
    rows = mixture(
        {"sid_to_sid": 1.0}, catalogue.samples.splits["train"], policy.renderer, 24, seed=1
    )
    counts = []
    for items in (0, 1, 2):
        recipe = soft_labels.Recipe.of({"items": items, "top_k": 4})
        found, _ = soft_labels.taught(catalogue, rows, policy.renderer, recipe)
        counts.append(len(found))
    assert counts[0] == len(rows)
    assert 0 < counts[1] - counts[0] == counts[2] - counts[1] <= 24
    # and those of pairs so many times the items, as far as train has pairs
    pairs = soft_labels.Recipe.of({"items": 0, "pairs": 1, "top_k": 4})
    found, _ = soft_labels.taught(catalogue, rows, policy.renderer, pairs)
    assert 0 < len(found) - len(rows) <= 24
    assert {len(row.history) for row in found[len(rows) :]} == {2}
    # and one for every user whose train rows have an end
    for passes in (1, 2):
        open_ends = soft_labels.Recipe.of({"items": 0, "open_histories": passes, "top_k": 4})
        found, _ = soft_labels.taught(catalogue, rows, policy.renderer, open_ends)
        users = [row.user_id for row in found[len(rows) :]]
        assert set(users) == {row.user_id for row in rows}
        assert len(users) == passes * len(set(users))


# ------------------------------------------------------------------------------ the stage


@pytest.mark.parametrize(
    "model, changed",
    [
        ({"normalize": "trie"}, {}),
        ({}, {"rows": "per_user", "group_by_user": True, "teacher": {}}),
        ({}, {"tasks": {"sid_to_sid": 1.0, "titles_to_sid": 0.5, "title_to_sid": 1.0}}),
    ],
)
def test_sft_with_soft_labels_learns_and_says_what_they_cost_before_it_starts(
    tmp_path, capsys, model, changed
):
    torch.set_num_threads(1)
    settings = {"soft_labels": {"top_k": 4, "final_weight": 0.1}, **changed}
    experiment = tiny_run(tmp_path, model=model, sft={"epochs": 1, "dropout": 0.0, **settings})
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    told = capsys.readouterr().out
    assert ("expects validation rows best" in told) is ("teacher" in changed)
    assert told.index("x the plain run") < told.index("best validation NDCG@10")
    logged = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert losses[-1] < losses[0]


def refused(tmp_path, **settings) -> str:
    experiment = tiny_run(tmp_path, sft=settings)
    with pytest.raises(UserError) as error:
        sft.train(experiment, stage_path(experiment, "sft"))
    return str(error.value)


def test_more_items_than_the_catalogue_has_are_refused_before_training(tmp_path):
    expected = "sft.soft_labels: top_k: got 25, but the catalogue has 24 items; lower it"
    assert refused(tmp_path, soft_labels={"top_k": 25}) == expected


def test_a_teacher_that_reads_texts_says_which_stage_makes_them(tmp_path):
    experiment = tiny_run(tmp_path)
    samples = chain_of_users(heldout=2)
    missing = stage_path(experiment, "sids") / "nothing.npy"
    with pytest.raises(
        UserError, match=r"nothing.npy not found, which text_knn reads; run `bash rqvae"
    ):
        experts.build(["text_knn"], samples, embeddings_file=missing, temperature=0.1)
