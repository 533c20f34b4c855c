"""Rankings of the same test rows side by side, and which differences are more than noise.

    python compare.py runs/quickstart                                  all that it has ranked
    python compare.py runs/A/evaluate/rl-test runs/B/evaluate/rl-test  two rankings
    python compare.py runs/A runs/A-seed43 runs/A-seed44               three seeds of everything
    python compare.py 'runs/A*/evaluate/sft-test' runs/A/baselines/markov --to markov

RUN is a directory with predictions.jsonl and metrics.json; or an experiment's folder, which stands
for its baselines/* and evaluate/*-test; or several of the first kind, joined by commas or found by
a pattern, that are seeds of one method. Experiments that differ only in their seed are seeds of the
same methods. Users are the units throughout: of several seeds a row counts by its mean. So the test
says whether other users would show the difference; whether another training would is what the
deviation over seeds tells.

    --to NAME        the method that the others are compared with; the first by default
    --metric A,B     what they are compared on; NDCG@10,HR@10 by default
    --samples N      resamples of intervals and of the randomisation test; 10000 by default
    --strings FILE   also score by SID string, as papers do, under the SIDs of FILE (index.json)
    --json FILE      write the same figures
    --page FILE      write them as a page too, with its pictures and tables as files beside it
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import argparse
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation.comparison import (
    check_comparable,
    check_metrics,
    compared,
    find_reference,
)
from minionerec.evaluation.methods import read_methods
from minionerec.evaluation.strings import by_string
from minionerec.experiment.files import write_json
from minionerec.pages.comparison import comparison_text
from minionerec.pages.comparison_page import write_comparison_page


def main(argv: Sequence[str] | None = None) -> None:
    """Read, check, compare, print."""
    options = read_arguments(argv)
    for flag, file in (("--json", options.json), ("--page", options.page)):
        if file and not Path(file).parent.is_dir():  # said before anything is read
            raise UserError(f"{flag} {file}: cannot be written: {os.strerror(errno.ENOENT)}")
    methods = read_methods(options.runs)
    rankings = []
    for method in methods:
        rankings += method.rankings
    check_comparable(rankings)
    keys = check_metrics(options.metric.split(","), methods)
    reference = find_reference(options.to, methods)
    figures = compared(methods, reference, keys, options.samples)
    if options.strings:
        figures["strings"] = by_string(methods, Path(options.strings))
    print(comparison_text(figures))
    if options.page:
        write_comparison_page(Path(options.page), figures)
    if options.json:
        try:
            write_json(Path(options.json), figures)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"--json {options.json}: cannot be written: {reason}") from error


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"compare.py: {message}; --help says more")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a flag is unknown or lacks its value.
    """
    parser = _Arguments(
        prog="compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--to", metavar="NAME")
    parser.add_argument("--metric", default="NDCG@10,HR@10")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--strings", metavar="FILE")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--page", metavar="FILE")
    options = parser.parse_args(argv)
    if options.samples < 100:
        raise UserError(f"--samples: got {options.samples}, expected at least 100")
    return options


if __name__ == "__main__":
    with one_line_errors():
        main()
