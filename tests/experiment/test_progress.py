"""Progress: a line a minute where nobody watches, with figures worked by hand."""

from __future__ import annotations

import pytest

from minionerec.experiment import progress
from minionerec.experiment.progress import Progress


class Clock:
    """Time that a test turns forward."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_log_file_gets_a_line_a_minute_with_share_rate_and_time_left(clock, capsys):
    with Progress("sft", 1000, "steps", done=100) as shown:
        for _ in range(15):
            clock.now += 10.0
            shown.update(20, loss="1.5")
    # 20 steps in 10 s are 2 a second; after 60 s 220 of 1,000 are done, after 120 s 340
    assert capsys.readouterr().err.splitlines() == [
        "sft: 220 of 1,000 steps (22 %), 2.0 steps/s, 6 min left, loss 1.5",
        "sft: 340 of 1,000 steps (34 %), 2.0 steps/s, 6 min left, loss 1.5",
    ]


def test_what_takes_less_than_a_minute_leaves_no_line(clock, capsys):
    with Progress("ranking", 10, "users") as shown:
        for _ in range(10):
            clock.now += 5.9
            shown.update()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_slow_pieces_and_unknown_totals_are_told_without_what_nobody_knows(clock, capsys):
    slow, endless = Progress("tiger", 4, "epochs"), Progress("reviews", None, "lines")
    clock.now += 90.0
    slow.update(0, loss="3.2")
    endless.update(900)
    slow.update()
    clock.now += 90.0
    slow.update()
    assert capsys.readouterr().err.splitlines() == [
        "tiger: 0 of 4 epochs (0 %), loss 3.2",
        "reviews: 900 lines, 10.0 lines/s",
        "tiger: 2 of 4 epochs (50 %), 90.0 s each, 3 min left",
    ]


def test_other_processes_of_a_launch_and_nameless_work_are_silent(clock, capsys, monkeypatch):
    nameless = Progress("", 10, "users")
    monkeypatch.setenv("RANK", "1")
    second = Progress("ranking", 10, "users")
    clock.now += 100.0
    nameless.update()
    second.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("ranking", 10, "users") as shown:
        clock.now += 100.0
        shown.update(4)
    error = capsys.readouterr().err
    assert "\r" in error and "ranking: 4 of 10" not in error
