"""Commands as a user types them: twice at once, without what they need, and every one that the README and the guides show.

bash test.sh tests/reliability/test_commands.py
bash test.sh tests/reliability/test_commands.py -m slow        every block of the pages, the real quickstart
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec import summary
from minionerec.errors import UserError
from minionerec.experiment import preflight
from minionerec.experiment.config import read_experiment
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import MANIFEST, verify
from minionerec.experiment.stages import COMMANDS
from tests import forks

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/DATA.md", "docs/GUIDE.md", "docs/METRICS.md", "CONTRIBUTING.md"]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
]
LINES = [
    line.partition("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.partition("#")[0].strip()
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> forks.Reference:
    return forks.Reference(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "stage, name",
    [
        ("data", "data"),
        ("sids", "embeddings"),
        ("sids", "sids"),
        ("sft", "sft"),
        ("rl", "rl"),
        ("evaluate", "evaluate/rl-test"),
    ],
)
def test_a_second_process_that_makes_the_same_is_refused_and_changes_nothing(
    reference, tmp_path, stage, name
):
    """While another one, here this process, holds the directory."""
    config = reference.before(stage, tmp_path)
    path = tmp_path / "runs/shop" / name
    with locked(path):
        code, said = forks.run(stage, config)
    refusal = rf"{path}: is being written by another process \(pid {os.getpid()} on \S+\); wait for it or stop it"
    assert code == 2 and re.search(f"^{refusal}$", said, re.M), said
    assert not path.exists()


@pytest.mark.parametrize("stage", forks.STAGES)
def test_a_finished_stage_started_again_says_so_and_changes_nothing(reference, tmp_path, stage):
    later = list(forks.STAGES)[list(forks.STAGES).index(stage) + 1 :]
    config = reference.before(later[0], tmp_path) if later else reference.folder / "shop.yaml"
    run = config.parent / "runs/shop"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("[!.]*") if path.is_file()}
    code, said = forks.run(stage, config)
    assert code == 0 and re.search("is finished|are there already", said), said
    assert {
        path: path.stat().st_mtime_ns for path in run.rglob("[!.]*") if path.is_file()
    } == before


@pytest.mark.parametrize(
    "stage, needs",
    [
        ("sids", ["data"]),
        ("sft", ["data", "sids"]),
        ("rl", ["data", "sids", "sft"]),
        ("evaluate", ["data", "sids", "rl"]),
        ("baselines", ["data", "sids"]),
    ],
)
def test_a_stage_without_its_inputs_names_the_command_of_each_before_anything_heavy_is_loaded(
    tmp_path, stage, needs
):
    """What every script runs first; and each stage by itself names the first one that is missing."""
    config = tmp_path / "empty.yaml"
    config.write_text(f"output_dir: {tmp_path}/runs\n")
    with pytest.raises(UserError) as caught:
        preflight.main([stage, "--config", str(config), "--evaluate.checkpoint", "rl"])
    folder = tmp_path / "runs/empty"
    assert str(caught.value).splitlines() == [
        f"{folder}/{name} not found; run `{COMMANDS[name]}` with the same --config first"
        for name in needs
    ]
    if stage in forks.STAGES:
        code, said = forks.run(stage, config, "--evaluate.checkpoint", "rl")
        assert (
            code == 2
            and said
            == f"{folder}/{needs[0]} not found; run `{COMMANDS[needs[0]]}` with the same --config first\n"
        )


def test_a_summary_without_results_names_the_commands_that_make_them(tmp_path):
    (tmp_path / "empty.yaml").write_text(f"output_dir: {tmp_path}/runs\n")
    with pytest.raises(
        UserError,
        match="nothing is measured yet; run `bash baselines/run.sh` or `bash evaluate.sh`",
    ):
        summary.main(read_experiment(tmp_path / "empty.yaml"))


def test_every_directory_that_a_stage_reads_has_a_maker_that_exists():
    for stage, command in COMMANDS.items():
        assert (ROOT / command.split()[-1]).is_file(), stage


# ------------------------------------------------------------------------------------------- README


def test_the_pages_have_blocks_and_every_line_of_them_is_a_command():
    assert len(BLOCKS) >= 4 and len(LINES) >= 12
    for line in LINES:
        assert re.match(r"(bash|python) (-m )?[\w./]+", line), line


@pytest.mark.slow
def test_every_block_of_the_pages_runs(tmp_path):
    """In its order, on a small shop in a folder with a space in its name; the placeholders are
    filled in.
    """
    shop = tmp_path / "my shop"
    config = forks.shop(shop)
    config.write_text(config.read_text() + "baselines: {methods: [popularity, markov]}\n")
    for seed in ("43", "44"):
        for stage in forks.STAGES:
            assert forks.run(stage, config, "--name", f"shop-seed{seed}", "--seed", seed)[0] == 0
    (shop / "new.csv").write_text(
        "item_id,title,description\n98,pink drill,for pink\n99,pink lamp,for pink\n"
    )
    filled = {
        "configs/quickstart.yaml": str(config),
        "C": str(config),
        "NAME": "extended",
        "new.csv": str(shop / "new.csv"),
        "runs/<name>/rl": str(shop / "runs/shop/rl"),
        "E0001,E0002": "00,01",
        "ID,ID": "00,99",
        "runs/quickstart": str(shop / "runs/shop"),
        "runs/A": str(shop / "runs/shop"),
        "runs/A-seed43": str(shop / "runs/shop-seed43"),
        "runs/A-seed44": str(shop / "runs/shop-seed44"),
    }
    ran = 0
    for line in LINES:
        words = [filled.get(word, word) for word in shlex.split(line)]
        if words[1] in ("quickstart.sh", "test.sh"):
            continue
        if "FOLDER" in words:
            words[words.index("FOLDER")] = str(shop / "runs/shop/sft")
        words[0] = {"bash": "bash", "python": sys.executable}[words[0]]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        ran += 1
    assert ran >= 10


@pytest.mark.slow
def test_the_real_quickstart_runs_and_ends_with_its_table(tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "quickstart.sh"), "--output_dir", str(tmp_path / "runs")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert re.search(r"== results on the test split\n.*\bRL\b", done.stdout, re.S)
    made = [
        verify(manifest.parent)["stage"]
        for manifest in (tmp_path / "runs/quickstart").rglob(MANIFEST)
    ]
    assert {"data", "embeddings", "sids", "baselines", "sft", "rl"} <= set(made) and made.count(
        "evaluate"
    ) == 2
