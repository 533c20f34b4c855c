"""Reading columns of times: units, dates, formats, and what is refused or doubted.

python -m pytest tests/catalogue/test_times.py
"""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

import numpy as np
import pytest

from minionerec.catalogue.sources import times

OCTOBER = 1538352000  # 2018-10-01


@pytest.mark.parametrize(
    "cell, seconds",
    [
        ("1538352000", 1538352000),
        (1538352000, 1538352000),
        (1538352000.9, 1538352000),
        ("1538352000123", 1538352000),
        ("1538352000000000", 1538352000),
        (1538352000999999999, 1538352000),
        (0, 0),
        ("2018-10-01", 1538352000),
        ("2018-10-01T00:00:00Z", 1538352000),
        ("2018-10-01 02:00:00+02:00", 1538352000),
        ("2018-10-01T00:00:59.9", 1538352059),
        (datetime(2018, 10, 1), 1538352000),
        (datetime(2018, 10, 1, tzinfo=UTC), 1538352000),
        (date(2018, 10, 1), 1538352000),
        ("Sun Sep 30 17:00:00 -0700 2018", 1538352000),
        ("Mon, 01 Oct 2018 00:00:00 +0000", 1538352000),
        ("10/31/2018 12:00:00 AM", 1540944000),
        ("31.10.2018 00:00", 1540944000),
    ],
)
def test_times_are_numbers_of_any_unit_or_dates_in_utc(cell, seconds):
    found = times.read_times([cell])
    assert (found.seconds.tolist(), found.seconds.dtype) == ([seconds], np.int64)
    assert not found.unreadable.any() and not found.early.any() and not found.mixed


@pytest.mark.parametrize(
    "cell",
    [
        "yesterday",
        "",
        None,
        "nan",
        "inf",
        "01/02/2018",
        True,
        [1],
        "2018-13-01",
        10**400,
        "9" * 400,
        "9999-12-31",
        datetime(9999, 12, 31),
    ],
)
def test_what_is_no_time_is_refused(cell):
    found = times.read_times([cell, 7])
    assert found.unreadable.tolist() == [True, False]
    assert found.seconds.tolist() == [0, 7]
    assert times.read_times([cell]).unreadable.tolist() == [True]


@pytest.mark.parametrize("cell", [-5, "-5", "1969-12-31T23:00:00Z", "0001-01-01", date(1, 1, 1)])
def test_times_before_1970_are_told_from_what_is_no_time(cell):
    found = times.read_times([cell, "1970-01-02"])
    assert found.early.tolist() == [True, False]
    assert not found.unreadable.any()
    assert found.seconds.tolist() == [0, 86400]


def test_seconds_and_dates_may_stand_in_one_column():
    found = times.read_times(["2018-10-01", "1538352001"])
    assert found.seconds.tolist() == [1538352000, 1538352001]
    assert found.unit == "seconds and dates" and not found.unreadable.any()


@pytest.mark.parametrize(
    "factor, unit",
    [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_the_unit_of_a_column_is_recognised_and_named(factor, unit):
    moments = [OCTOBER, OCTOBER + 59, 0, 1_700_000_000]
    for values in ([m * factor for m in moments], [str(m * factor) for m in moments]):
        found = times.read_times(values)
        assert found.unit == unit
        assert found.seconds.tolist() == moments


def test_a_column_in_two_units_is_refused_with_the_first_cell_of_each():
    found = times.read_times(["2018-10-01", 0, 1538352001, 1538352002000, 1538352003])
    assert found.mixed == {"seconds": 2, "milliseconds": 3}


def test_the_last_nanosecond_of_a_second_stays_in_it():
    """A float would round 999999999 ns up to the next second."""
    assert times.read_times([OCTOBER * 10**9 + 999_999_999]).seconds.tolist() == [OCTOBER]


def test_a_date_that_two_formats_read_differently_is_refused_and_both_are_named():
    found = times.read_times(["01/02/2018", "03/04/2018"])
    assert found.unreadable.all()
    assert found.formats[:2] == ("%m/%d/%Y", "%d/%m/%Y")
    assert times.expected(found) == (
        "one way to read it: both '%m/%d/%Y' and '%d/%m/%Y' fit; set data.time_format to one"
    )


def test_one_date_that_fits_a_single_format_settles_it_for_the_column():
    found = times.read_times(["01/02/2018", "03/31/2018"])
    assert found.unit == "dates as %m/%d/%Y"
    assert [times.day_of(s)[:10] for s in found.seconds] == ["2018-01-02", "2018-03-31"]


def test_a_given_format_reads_every_cell_and_nothing_else():
    found = times.read_times(["01/02/2018", "20180102", "2018-01-02"], "%d/%m/%Y")
    assert found.unreadable.tolist() == [False, True, True]
    assert times.day_of(int(found.seconds[0])) == "2018-02-01 00:00:00"
    assert "'%d/%m/%Y'" in times.expected(found)
    numbers = times.read_times([20180102, 20181231], "%Y%m%d")
    assert [times.day_of(s)[:10] for s in numbers.seconds] == ["2018-01-02", "2018-12-31"]


@pytest.mark.parametrize(
    "seconds, unit, words",
    [
        ([2001, 2018], "seconds", "if these are years"),
        ([43374, 43380], "seconds", "spreadsheet's day numbers"),
        ([20240530, 20240531], "seconds", "if these are dates"),
        ([OCTOBER, 5], "seconds", "before 1995 or after tomorrow"),
        ([OCTOBER, int(time.time()) + 3 * 86_400], "dates", "before 1995 or after tomorrow"),
    ],
)
def test_times_that_nobody_shopped_at_are_doubted(seconds, unit, words):
    doubt = times.doubt(np.array(seconds), unit)
    assert words in doubt.reason
    unlikely = [s for s in seconds if s < 788_918_400 or s > time.time()]
    assert doubt.rows == len(unlikely) and seconds[doubt.row] == unlikely[0]


def test_times_of_our_days_are_not_doubted():
    assert times.doubt(np.array([788_918_400, OCTOBER, int(time.time())]), "seconds") is None
    assert times.doubt(np.array([], dtype=np.int64), "seconds") is None
