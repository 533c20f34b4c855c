"""What a run cost: python -m pytest tests/test_cost.py"""

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
