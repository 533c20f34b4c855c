"""Everything an experiment has measured on the test split: a table, and runs/<name>/report.html.

python -m minionerec.summary --config configs/quickstart.yaml
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

from minionerec.errors import one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.pages.summary import main

if __name__ == "__main__":
    with one_line_errors():
        main(read_command_line(__doc__, own=())[0])
