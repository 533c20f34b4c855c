"""The audit: every check has a world where it is ok and one where it is a problem, with figures worked by hand.

python -m pytest tests/commands/test_audit.py
"""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from data import audit
from minionerec.catalogue import inputs
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Samples, build_samples, fixed_subset
from minionerec.catalogue.templates import TEMPLATES
from minionerec.evaluation import audit_checks, audit_leaks
from minionerec.evaluation.audit_evidence import Evidence, Prompts
from minionerec.experiment.commit import committed
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import stage_path
from minionerec.model import backbone
from tests.worlds import tiny_run

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PERIOD = {"train": 0, "valid": 100, "test": 200}


def world(
    *sequences: str,
    times: dict[int, int] | None = None,
    titles: dict[str, str] | None = None,
    max_history: int = 10,
    **changes,
) -> Evidence:
    """A user per sequence ``"train|valid|test"`` of letters, each an item; the catalogue is the alphabet.

    Args:
        times: time of the n-th interaction of all, where it is not the place in its period.
        titles: of some items, by letter; the others have their letter three times.
        changes: fields of ``Evidence``.
    """
    rows = [
        (f"u{user}", letter, PERIOD[split] + place, split)
        for user, sequence in enumerate(sequences)
        for split, letters in zip(PERIOD, sequence.split("|"), strict=True)
        for place, letter in enumerate(letters)
    ]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"])
    for row, time in (times or {}).items():
        interactions.loc[row, "timestamp"] = time
    items = pd.DataFrame(
        {
            "item_id": list(LETTERS),
            "title": [(titles or {}).get(letter, letter * 3) for letter in LETTERS],
            "description": "",
        }
    )
    splits, train = build_samples(
        interactions, {letter: n for n, letter in enumerate(LETTERS)}, max_history
    )
    return Evidence(
        **{
            "samples": Samples(items, splits, train),
            "interactions": interactions,
            "split_rule": "global_time",
            "embeddings": None,
            "prompts": None,
            **changes,
        }
    )


def test_a_test_row_that_training_shows_word_for_word_is_found():
    """Of abab|a|b a history of one item shows a -> b three times, one of them in test; longer
    histories tell them apart.
    """
    found = audit_checks.rows_in_train(world("abab|a|b", max_history=1))
    assert (found.verdict, found.figures) == ("problem", {"valid": 1, "test": 1})
    assert audit_checks.rows_in_train(world("abab|a|b")).figures == {"valid": 0, "test": 0}
    assert (
        audit_checks.rows_in_train(world("ab|a|b", "ab|a|b")).verdict == "ok"
    )  # another user's equal row is no leak


def test_a_train_interaction_after_a_held_out_one_is_found_by_place_and_by_time():
    assert audit_checks.time_order(world("abc|d|e")).verdict == "ok"
    late = audit_checks.time_order(world("abc|d|e", "abc|d|e", times={2: 150, 1: 100}))
    assert (late.verdict, late.figures) == (
        "problem",
        {"by_place": 0, "by_time": 1},
    )  # at the same time is not after
    evidence = world("abc|d|e")
    evidence.interactions.loc[:, "split"] = ["train", "valid", "train", "valid", "test"]
    assert audit_checks.time_order(evidence).figures["by_place"] == 1


def test_training_on_the_time_of_the_test_is_a_problem_of_a_split_by_time_only():
    assert audit_checks.future_in_train(world("ab|c|d", "ab|c|d")).verdict == "ok"
    late = {"times": {5: 201}}  # second train row of the second user
    found = audit_checks.future_in_train(world("ab|c|d", "ab|c|d", **late))
    assert (found.verdict, found.figures) == ("problem", {"train_later": 0.25, "test_earlier": 1.0})
    assert (
        audit_checks.future_in_train(
            world("ab|c|d", "ab|c|d", **late, split_rule="leave_one_out")
        ).verdict
        == "look"
    )


def test_near_duplicates_of_a_target_are_found_by_title_words_and_by_cosine():
    """Users 1 and 2 take b after a, the same bolt; user 3 takes d, which only the embeddings know
    to be c.
    """
    worlds = {
        "sequences": ("a|x|b", "a|x|b", "c|x|d", "e|x|f"),
        "titles": {"a": "Bolt, M3", "b": "bolt m3"},
    }
    by_title = audit_checks.near_duplicates(world(*worlds["sequences"], titles=worlds["titles"]))
    assert by_title.verdict == "problem"
    assert by_title.figures == {
        "rows": 4,
        "in_history": 0.5,
        "in_train": 0.5,
        "cold_rows": 4,
        "cold_with_one_in_train": 2,
        "by_embedding": False,
    }
    embeddings = np.eye(26, dtype=np.float32)
    embeddings[3, :] = 0
    embeddings[3, [2, 25]] = 0.96, 0.28  # cosine .96 to c, .28 to z
    by_both = audit_checks.near_duplicates(
        world(*worlds["sequences"], titles=worlds["titles"], embeddings=embeddings)
    )
    assert (by_both.figures["in_history"], by_both.figures["cold_with_one_in_train"]) == (0.75, 3)
    assert (
        audit_checks.near_duplicates(world(*worlds["sequences"], embeddings=np.eye(26))).verdict
        == "ok"
    )
    assert (
        audit_checks.near_duplicates(world("a|x|a")).figures["in_train"] == 0
    )  # an item is no duplicate of itself


def test_of_many_test_rows_a_sample_is_compared_with_train_and_the_sentence_says_so(monkeypatch):
    monkeypatch.setattr(audit_leaks, "NEAR_ROWS", 2)
    evidence = world("a|x|b", "a|x|b", "c|x|d", "e|x|f", titles={"a": "Bolt, M3", "b": "bolt m3"})
    found = audit_checks.near_duplicates(evidence)
    drawn = fixed_subset([1.0, 1.0, 0.0, 0.0], 2, seed=0)  # whether the targets have one
    assert found.figures["rows"] == 2
    assert found.figures["in_history"] == sum(drawn) / 2
    assert "of 2 test targets drawn have" in found.found
    assert "of the test targets have" in audit_checks.near_duplicates(world("a|x|b")).found


def prompts(leaking: bool) -> Prompts:
    """SIDs <a_0> .. <a_25>; ``leaking`` appends the answer to the title, as the reference's prompts
    do.
    """
    sids, template = [f"<a_{n}>" for n in range(26)], TEMPLATES["compact"]

    def render(task, shown):
        texts = (
            sids
            if task.startswith("sid")
            else [
                letter * 3 + (f" {sids[n]}" if leaking else "") for n, letter in enumerate(LETTERS)
            ]
        )
        return (
            template.before[task] + " ; ".join(texts[item] for item in shown) + template.after[task]
        )

    return Prompts(
        ("sid_to_sid", "sid_to_title", "title_to_sid", "sids_to_title"), template, sids, render
    )


def test_a_prompt_with_its_answer_is_a_problem_unless_the_user_had_the_item_before():
    """26 titles and 4 samples of 2 sequence tasks; the only repeated target (a) is in its history
    and therefore no leak.
    """
    honest = audit_checks.target_in_prompt(world("abc|d|a", prompts=prompts(leaking=False)))
    assert (honest.verdict, honest.figures["prompts"]) == ("ok", 2 * 4 + 2 * 26)
    leaks = audit_checks.target_in_prompt(world("abc|d|a", prompts=prompts(leaking=True)))
    assert (
        leaks.verdict == "problem"
        and leaks.figures["leaks"]["title_to_sid"] == 26
        and leaks.figures["leaks"]["sid_to_sid"] == 0
    )
    assert audit_checks.target_in_prompt(world("ab|c|d")).verdict == "look"


def test_repeats_are_counted_anywhere_in_the_history_and_at_its_end():
    """Targets: c directly again, a from before, e new. Of nine later interactions c and a repeat."""
    found = audit_checks.repeats(world("ab|c|c", "ab|c|a", "ab|c|e"))
    assert found.verdict == "problem"
    assert found.figures == pytest.approx(
        {"repeat_rate": 2 / 9, "target_in_history": 2 / 3, "repeats_last": 1 / 3}
    )
    assert audit_checks.repeats(world("ab|c|d")).verdict == "ok"


def test_cold_targets_are_those_never_in_train():
    found = audit_checks.cold_targets(world("ab|c|d", "ab|d|e", "ab|c|a"))
    assert (found.verdict, found.figures) == (
        "problem",
        {"rows": 3, "never_in_train": 2, "in_no_other_split": 1},
    )
    assert audit_checks.cold_targets(world("ab|c|a")).verdict == "ok"


def test_test_users_of_whom_training_has_nothing_are_counted():
    found = audit_checks.users_without_train(world("|a|b", "|a|b", "ab|c|d"))
    assert (found.verdict, found.figures) == ("look", {"users": 3, "without": 2})
    assert audit_checks.users_without_train(world("|a|b")).verdict == "problem"
    assert audit_checks.users_without_train(world("ab|c|d")).verdict == "ok"


def test_a_test_row_with_a_single_item_to_go_by_is_counted():
    assert audit_checks.histories(world("|a|b", "ab|c|d")).figures["single"] == 0.5
    assert (
        audit_checks.histories(world("|a|b")).verdict == "problem"
        and audit_checks.histories(world("ab|c|d")).verdict == "ok"
    )


def test_the_transition_graph_is_measured_and_bounds_first_order_rules():
    """a is followed by b, b and c, b by c: entropy of a is that of (2/3, 1/3), of b 0; three of the
    four transitions leave a.
    """
    train = ("abc|z|b", "ab|a|b", "ac|a|y")
    found, edges = (
        audit_checks.branching(world(*train)),
        {"items_with_successor": 2, "successors": 1.5, "test_edges_in_train": 1 / 3},
    )
    bits = 0.75 * -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert found.figures == pytest.approx(edges | {"entropy_bits": bits})
    assert found.verdict == "ok" and audit_checks.branching(world("ab|c|d")).verdict == "problem"


def test_rows_that_rules_solve_are_counted_at_rank_one_and_ten():
    """The last item a is followed by b in train; b is the second most popular item; y and z are
    beyond the first ten of every rule.
    """
    found = audit_checks.zero_cost(world("aab|a|b", "aa|a|a", "aa|x|z"))
    assert found.verdict == "problem" and found.figures["any_at_10"] == pytest.approx(2 / 3)
    assert found.figures["Markov"] == pytest.approx(
        {"at_1": 1 / 3, "at_10": 2 / 3}
    )  # a -> a three times, a -> b once
    assert found.figures["popularity"] == pytest.approx({"at_1": 1 / 3, "at_10": 2 / 3})
    assert found.figures["repeat"] == pytest.approx({"at_1": 1 / 3, "at_10": 2 / 3})
    assert (
        audit_checks.zero_cost(world("ab|c|z")).figures["any_at_10"] == 0
        and audit_checks.zero_cost(world("ab|c|z")).verdict == "ok"
    )


def test_listings_with_the_same_text_are_counted():
    found = audit_checks.duplicate_listings(
        world("ab|c|d", titles={"a": "bolt", "b": "bolt", "c": "Bolt"})
    )
    assert (found.verdict, found.figures) == (
        "problem",
        {"items": 2, "groups": 1},
    )  # 2 of 26; case makes another text
    assert audit_checks.duplicate_listings(world("ab|c|d")).verdict == "ok"


def test_interactions_on_one_item_are_concentrated():
    """All train interactions on one of 26 items: Gini 25/26, and the one item that is 1 % of 26 has
    them all.
    """
    found = audit_checks.concentration(world("aaaa|b|c"))
    assert found.verdict == "problem" and found.figures == pytest.approx(
        {"gini_items": 25 / 26, "gini_users": 0, "top_1_percent_items": 1}
    )
    even = audit_checks.concentration(world(f"{LETTERS}|b|c"))
    assert even.verdict == "ok" and even.figures["gini_items"] == pytest.approx(0)


def test_targets_at_the_time_of_the_interaction_before_are_ties():
    found = audit_checks.ties(world("ab|c|d", "ab|c|d", times={3: 100, 1: 0}))
    assert (found.verdict, found.figures) == ("look", pytest.approx({"all": 2 / 6, "test": 0.5}))
    assert (
        audit_checks.ties(world("ab|c|d", times={3: 100})).verdict == "problem"
        and audit_checks.ties(world("ab|c|d")).verdict == "ok"
    )


# --------------------------------------------------------------------------------------------------
# The script


def audited(experiment, monkeypatch, capsys) -> str:
    """Run the script in-process; returns what it printed."""
    monkeypatch.setattr(audit, "read_command_line", lambda *_, **__: (experiment, {}))
    capsys.readouterr()
    audit.main()
    return capsys.readouterr().out


def test_the_audit_is_printed_committed_and_made_again_when_a_later_stage_is_there(
    tmp_path, monkeypatch, capsys
):
    experiment = tiny_run(tmp_path)
    sids, away = stage_path(experiment, "sids"), tmp_path / "away"
    sids.rename(away)
    shown = audited(experiment, monkeypatch, capsys)
    path = stage_path(experiment, "audit")
    report, text = json.loads((path / "audit.json").read_text()), (path / "audit.html").read_text()
    assert [row["name"] for row in report["checks"]] == list(
        dict.fromkeys(row["name"] for row in report["checks"])
    )
    assert (
        len(report["checks"]) == len(audit_checks.CHECKS)
        and report["line"] in shown
        and report["line"] in text
    )
    assert all(row["name"] in shown and row["name"] in text for row in report["checks"])
    again = audited(experiment, monkeypatch, capsys)
    assert "no embeddings yet" in shown
    assert shown.startswith(f"written to {path}") and again.startswith(f"{path} is finished")
    assert shown.splitlines()[1:] == again.splitlines()[1:]
    away.rename(sids)
    assert "a cosine above 0.95" in audited(experiment, monkeypatch, capsys)


def test_prompts_of_a_trained_checkpoint_are_read_as_it_reads_them(tmp_path, monkeypatch, capsys):
    """Two tasks: every sample of the three splits, and every item; then a renderer that adds the
    SID of the last item shown.
    """
    experiment = tiny_run(tmp_path, rl={"tasks": {"sid_to_sid": 1.0, "title_to_sid": 1.0}})
    data, sids_dir = stage_path(experiment, "data"), stage_path(experiment, "sids")
    samples, sids = inputs.load_catalogue(experiment, data, sids_dir)
    model, tokenizer = backbone.build(experiment.model, sids, inputs.texts(samples.items), seed=0)
    parents = [opened(data), opened(sids_dir)]
    with committed(stage_path(experiment, "sft"), "sft", {}, parents) as staging:
        backbone.save(model, tokenizer, sids_dir / "sids.json", TEMPLATES["compact"], staging)
    rendered = sum(map(len, samples.splits.values())) + 24
    shown = " ".join(audited(experiment, monkeypatch, capsys).split())
    assert (
        f"ok target in prompt 0 of {rendered} rendered prompts of the tasks sid_to_sid, title_to_sid hold"
        in shown
    )
    honest = Renderer.prompt
    monkeypatch.setattr(
        Renderer,
        "prompt",
        lambda self, task, items: honest(self, task, items) + self.completion(task, items[-1])[:-1],
    )
    shutil.rmtree(stage_path(experiment, "audit"))
    shown = " ".join(audited(experiment, monkeypatch, capsys).split())
    assert (
        f"problem target in prompt 24 of {rendered} rendered prompts" in shown
        and "24 title_to_sid" in shown
    )
