"""What a run cost: python -m pytest tests/evaluation/test_cost.py"""

import pytest

from minionerec.evaluation.cost import training_seconds
from minionerec.training.run import note_training


def test_the_seconds_of_a_training_add_up_over_its_interruptions_and_rl_counts_the_sft_before_it(
    tmp_path,
):
    note_training(tmp_path, "sft", 0, 7, 10.0)
    note_training(tmp_path, "sft", 7, 20, 5.5)
    assert training_seconds(tmp_path, "sft") == 15.5
    assert training_seconds(tmp_path, "rl") is None
    note_training(tmp_path, "rl", 0, 3, 2.0)
    assert training_seconds(tmp_path, "rl") == 17.5


def test_a_training_that_began_anew_counts_alone(tmp_path):
    note_training(tmp_path, "sft", 0, 20, 100.0)
    note_training(tmp_path, "sft", 0, 20, 7.0)
    assert training_seconds(tmp_path, "sft") == 7.0


@pytest.mark.parametrize("parts", [[], [(5, 20)], [(0, 5), (9, 20)]])
def test_a_part_that_nobody_noted_makes_the_whole_unknown(tmp_path, parts):
    for start, end in parts:
        note_training(tmp_path, "sft", start, end, 1.0)
    assert training_seconds(tmp_path, "sft") is None


def test_a_note_that_was_cut_off_makes_its_part_unknown_and_nothing_else(tmp_path):
    note_training(tmp_path, "sft", 0, 7, 10.0)
    with open(tmp_path / "timing.jsonl", "a") as handle:
        handle.write('{"stage": "sft", "from_st')
    assert training_seconds(tmp_path, "sft") == 10.0
    note_training(tmp_path, "sft", 7, 20, 5.0)  # on the line that was cut off
    note_training(tmp_path, "sft", 20, 30, 5.0)
    assert training_seconds(tmp_path, "sft") is None


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00garbage",
        b"[1, 2]",
        b'"sft"',
        b'{"seconds": 3}',
        b'{"stage": "sft"}',
        b'{"stage": "sft", "from_step": "0", "to_step": 5, "seconds": 1}',
        b'{"stage": "sft", "from_step": 0, "to_step": 20, "seconds": "long"}',
        b'{"stage": "sft", "from_step": 20, "to_step": 30, "seconds": null}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_note_of_ours_makes_the_time_unknown_at_most(tmp_path, line):
    """The file is read when all rows are ranked: a traceback there would throw the ranking away."""
    note_training(tmp_path, "sft", 0, 20, 10.0)
    with open(tmp_path / "timing.jsonl", "ab") as handle:
        handle.write(line + b"\n")
    assert training_seconds(tmp_path, "sft") in (10.0, None)
    assert training_seconds(tmp_path, "rl") is None
