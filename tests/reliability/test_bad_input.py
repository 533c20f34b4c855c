"""Bad settings and bad files: every one is refused by the command itself with its pinned line and exit code 2, and nothing is written.

The cases are those of ``tests/malformed`` and of the tests of the readers, run here as a user runs them, and what later
stages may find.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import evaluate
import recommend
import sft
from data import prepare
from minionerec import summary
from minionerec.errors import one_line_errors
from minionerec.experiment.commit import commit
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import MANIFEST, opened
from minionerec.experiment.settings import DataSettings
from minionerec.experiment.stages import evaluation_path, settings_of, stage_path
from tests.catalogue import test_data_amazon, test_data_minionerec, test_data_tables
from tests.experiment.test_config import MALFORMED, expected_lines
from tests.worlds import tiny_run


def ended(capsys, work: Callable[[], object]) -> str:
    """What a command says on stderr before it ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        work()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_every_bad_settings_file_ends_a_command_with_exactly_its_lines(monkeypatch, capsys):
    monkeypatch.chdir(MALFORMED)
    names = sorted(path.name for path in MALFORMED.glob("*.yaml"))
    for name in names:
        said = ended(capsys, lambda name=name: read_command_line("", ["--config", name], own=()))
        assert said == expected_lines(Path(name)) + "\n", name
    assert len(names) >= 78


# ----------------------------------------------------------------------------------------- raw data


def table_cases(folder: Path) -> list[tuple[DataSettings, str]]:
    """Settings of a folder with one mistake, and the line that names it."""
    found = []
    for number, (interactions, items, settings, message) in enumerate(
        test_data_tables.BAD.values()
    ):
        (folder / str(number)).mkdir(parents=True)
        found.append(
            (
                test_data_tables.shop(folder / str(number), interactions, items, **settings),
                f"{folder}/{number}/{message}".format(folder / str(number)),
            )
        )
    return found


def minionerec_cases(folder: Path) -> list[tuple[DataSettings, str]]:
    found = []
    for number, (name, old, new, message) in enumerate(test_data_minionerec.BAD.values()):
        (folder / str(number)).mkdir(parents=True)
        settings = test_data_minionerec.folder(folder / str(number), test_data_minionerec.WORLD)
        test_data_minionerec.replaced(folder / str(number) / name, old, new)
        found.append((settings, message.format(folder / str(number))))
    return found


def amazon_cases(folder: Path) -> list[tuple[DataSettings, str]]:
    found = []
    for number, (name, line, message) in enumerate(test_data_amazon.BAD.values()):
        (folder / str(number)).mkdir(parents=True)
        settings = test_data_amazon.release(folder / str(number), "2018 unpacked")
        with open(folder / str(number) / name, "a") as handle:
            handle.write(line + "\n")
        found.append((settings, f"{folder / str(number) / name}{message}"))
    return found


def test_every_bad_data_file_ends_stage_0_with_exactly_its_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    cases = [
        *table_cases(tmp_path / "tables"),
        *minionerec_cases(tmp_path / "minionerec"),
        *amazon_cases(tmp_path / "amazon"),
    ]
    for number, (settings, message) in enumerate(cases):
        data = settings.model_dump(exclude_unset=True)
        (tmp_path / f"case-{number}.yaml").write_text(
            yaml.safe_dump({"output_dir": str(tmp_path / "runs"), "data": data})
        )
        monkeypatch.setattr(
            "sys.argv", ["prepare.py", "--config", str(tmp_path / f"case-{number}.yaml")]
        )
        assert ended(capsys, prepare.main) == message + "\n"
    assert [
        path.name
        for path in (tmp_path / "runs").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ] == []
    assert len(cases) >= 45


@pytest.mark.parametrize("name", ["Toys.index.json", "Toys.item.json", "Toys_train.csv"])
def test_a_byte_order_mark_changes_nothing(tmp_path, name):
    from minionerec.catalogue.sources import minionerec_csv

    for kind in ("plain", "marked"):
        (tmp_path / kind).mkdir()
    plain, marked = (
        test_data_minionerec.folder(tmp_path / kind, test_data_minionerec.WORLD)
        for kind in ("plain", "marked")
    )
    file = tmp_path / "marked" / name
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert minionerec_csv.load(marked).interactions.equals(minionerec_csv.load(plain).interactions)


# ------------------------------------------------------------------- what a stage hands to the next


def table(name: str, change: Callable[[pd.DataFrame], object]) -> Callable[[Path], object]:
    """A change of one of the data stage's tables."""

    def work(folder: Path) -> None:
        frame = pd.read_parquet(folder / name)
        change(frame)
        frame.to_parquet(folder / name)

    return work


def all_train(frame: pd.DataFrame) -> None:
    frame.loc[frame["split"] == "test", "split"] = "train"


def sids(**changes: object) -> Callable[[Path], object]:
    """Other SIDs for some items, or other keys (in capitals) of ``sids.json``."""

    def work(folder: Path) -> None:
        content = json.loads((folder / "sids.json").read_text())
        content["sids"] |= {item: codes for item, codes in changes.items() if item.islower()}
        content |= {key.lower(): value for key, value in changes.items() if key.isupper()}
        write_json(folder / "sids.json", content)

    return work


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


HANDED_ON = {
    "item id twice": (
        "data",
        table("items.parquet", lambda frame: frame.loc.__setitem__((5, "item_id"), "i3")),
        "{data}/items.parquet, row 5: item_id: got 'i3', expected every id once (1 rows are wrong); delete {data} and "
        "make it again",
    ),
    "unknown item": (
        "data",
        table("interactions.parquet", lambda frame: frame.loc.__setitem__((7, "item_id"), "i99")),
        "{data}/interactions.parquet, row 7: item_id: got 'i99', expected an item_id of items.parquet (1 rows are wrong); "
        "delete {data} and make it again",
    ),
    "unknown split": (
        "data",
        table("interactions.parquet", lambda frame: frame.loc.__setitem__((4, "split"), "dev")),
        "{data}/interactions.parquet, row 4: split: got 'dev', expected train, valid or test (1 rows are wrong); delete "
        "{data} and make it again",
    ),
    "no test targets": (
        "data",
        table("interactions.parquet", all_train),
        "{data}: the test split has no sample; prepare the data with another data.split or more users",
    ),
    "code too large": (
        "sids",
        sids(i2=[0, 8]),
        "{sids}/sids.json: item 'i2', level 1: got 8, expected a whole number from 0 to 7",
    ),
    "code negative": (
        "sids",
        sids(i2=[-1, 0]),
        "{sids}/sids.json: item 'i2', level 0: got -1, expected a whole number from 0 to 7",
    ),
    "code is a fraction": (
        "sids",
        sids(i2=[0.5, 0]),
        "{sids}/sids.json: item 'i2', level 0: got 0.5, expected a whole number from 0 to 7",
    ),
    "code is text": (
        "sids",
        sids(i2=["<a_0>", "<b_0>"]),
        "{sids}/sids.json: item 'i2', level 0: got '<a_0>', expected a whole number from 0 to 7",
    ),
    "too many levels": (
        "sids",
        sids(i2=[0, 1, 2]),
        "{sids}/sids.json: item 'i2': got [0, 1, 2], expected a list of 1 to 2 codes",
    ),
    "no level": (
        "sids",
        sids(i2=[]),
        "{sids}/sids.json: item 'i2': got [], expected a list of 1 to 2 codes",
    ),
    "beginning of another": (
        "sids",
        sids(i2=[3]),
        "{sids}/sids.json: the SID of item 'i2' [3] is the beginning of item 'i3' [3, 0]; give "
        "both the same number of levels",
    ),
    "item of another catalogue": (
        "sids",
        sids(x=[0, 7]),
        "{sids}/sids.json: item 'x' is not in the catalogue (25 SIDs, 24 items); run "
        "`bash rqvae/rqvae.sh` again",
    ),
    "item without SID": (
        "sids",
        sids(SIDS={"i0": [0, 0]}),
        "{sids}/sids.json: item 'i1' of the catalogue has no SID; run `bash rqvae/rqvae.sh` again",
    ),
    "no sizes": (
        "sids",
        sids(CODEBOOK_SIZES=["x"]),
        "{sids}/sids.json: is not a SID file (ValueError: invalid literal for int() with base "
        "10: 'x'); expected the keys sids and codebook_sizes",
    ),
    "cut off": (
        "sids",
        text("sids.json", '{"sids": {"i0": [0'),
        "{sids}/sids.json: is not a SID file (JSONDecodeError: Expecting ',' "
        "delimiter: line 1 column 19 (char 18)); expected the keys sids and codebook_sizes",
    ),
}


@pytest.mark.parametrize("case", HANDED_ON)
def test_a_mistake_in_what_an_earlier_stage_made_names_the_row_or_the_item(tmp_path, capsys, case):
    """In directories that are whole by their manifests, as if the earlier stage had made the
    mistake.
    """
    stage, change, message = HANDED_ON[case]
    experiment = tiny_run(tmp_path)
    folders = {name: stage_path(experiment, name) for name in ("data", "sids")}
    for name, parents in (("data", []), ("sids", [folders["data"]])):
        folders[name].rename(tmp_path / name)
        (tmp_path / name / MANIFEST).unlink()
        if name == stage:
            change(tmp_path / name)
        commit(
            tmp_path / name,
            folders[name],
            name,
            settings_of(experiment, name),
            [opened(parent) for parent in parents],
        )
    said = ended(capsys, lambda: sft.train(experiment, stage_path(experiment, "sft")))
    assert said == message.format(**folders) + "\n"


TRAINED = {"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "eval_rows": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    experiment = tiny_run(folder, sft=TRAINED)
    sft.train(experiment, stage_path(experiment, "sft"))
    return folder


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("sids.json", "{", "{0}/sids.json: is not a SID file (JSONDecodeError: "),
        ("config.json", "{", "model '{0}': config.json is not a JSON object"),
        ("config.json", "[]", "model '{0}': config.json is not a JSON object"),
        ("tokenizer.json", "{", "model '{0}': cannot be loaded: "),
        ("tokenizer_config.json", "[", "model '{0}': cannot be loaded: "),
        ("model.safetensors", "", "model '{0}': cannot be loaded: "),
        ("prompt_template.json", "{", "{0}/prompt_template.json: "),
        ("prompt_template.json", '{"prompt": 3}', "{0}/prompt_template.json: "),
    ],
)
def test_a_bad_file_of_a_checkpoint_of_ones_own_is_one_line(
    trained, tmp_path, capsys, name, content, message
):
    folder = tmp_path / "foreign"
    shutil.copytree(trained / "tiny/sft", folder, ignore=shutil.ignore_patterns(MANIFEST))
    (folder / name).write_text(content)
    experiment = tiny_run(
        trained, evaluate={"checkpoint": str(folder), "num_beams": 10, "bootstrap_samples": 0}
    )
    said = ended(capsys, lambda: evaluate.evaluate(experiment, tmp_path / "results"))
    assert said.startswith(message.format(folder)) and said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_changed_number_in_a_results_file_is_not_shown(trained, tmp_path, capsys):
    shutil.copytree(trained / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns(".*"))
    experiment = tiny_run(
        tmp_path,
        sft=TRAINED,
        evaluate={"checkpoint": "sft", "num_beams": 10, "bootstrap_samples": 0},
    )
    path = evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    summary.main(experiment)
    metrics = json.loads((path / "metrics.json").read_text())
    write_json(path / "metrics.json", metrics | {"HR@10": metrics["HR@10"] + 0.1})
    assert ended(capsys, lambda: summary.main(experiment)).startswith(
        f"{path / 'metrics.json'}: is damaged"
    )


HUGE_HEADER = b"\x93NUMPY\x01\x00v\x00" + (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 384), }".ljust(117) + b"\n"
)


def test_a_digit_that_is_no_number_is_refused_for_k(monkeypatch, tmp_path, capsys):
    (tmp_path / "shop.yaml").write_text("name: shop\n")
    words = ["recommend.py", "--config", str(tmp_path / "shop.yaml"), "--history", "a"]
    for k in ("\u00b2", "0", "-1", "1.5", "ten"):
        monkeypatch.setattr("sys.argv", [*words, f"--k={k}"])
        assert ended(capsys, recommend.main) == f"--k: got '{k}', expected a whole number from 1\n"


def test_an_id_with_a_comma_can_be_given_in_double_quotes():
    assert recommend.history_ids("12,7, 31") == ["12", "7", "31"]
    assert recommend.history_ids('"bolts, long",7') == ["bolts, long", "7"]
    assert recommend.history_ids(",") == []


@pytest.mark.parametrize("source", ["tables", "amazon", "minionerec"])
@pytest.mark.parametrize("path", ["a file", "n" * 300])
def test_a_path_that_is_no_folder_is_one_line(monkeypatch, tmp_path, capsys, source, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("x")
    (tmp_path / "shop.yaml").write_text(f"data: {{source: {source}, path: '{path}'}}\n")
    monkeypatch.setattr("sys.argv", ["prepare.py", "--config", "shop.yaml"])
    said = ended(capsys, prepare.main)
    assert (
        said.startswith(f"data.path: no folder '{path}' in {tmp_path}; ") and said.count("\n") == 1
    )


def test_embeddings_that_are_no_numbers_are_refused_by_stage_1(tmp_path, capsys):
    """NaN, infinite, zero and equal rows: tests/rqvae/test_sids_bad_input.py; here the file itself."""
    from rqvae import build_sids

    (tmp_path / "item_ids.json").write_text('["i0"]')
    for content, words in (
        (b"", "is not an array of numbers"),
        (b"PK\x03\x04", "is not an array of numbers"),
        (b"not", "is not an array"),
        (HUGE_HEADER, "is not an array of numbers"),
    ):
        (tmp_path / "embeddings.npy").write_bytes(content)
        said = ended(capsys, lambda: build_sids.read_embeddings(tmp_path, ["i0"]))
        assert (
            said.startswith(f"{tmp_path}/embeddings.npy: ")
            and words in said
            and said.count("\n") == 1
        )
    np.save(tmp_path / "embeddings.npy", np.zeros((1, 2)))
    assert build_sids.read_embeddings(tmp_path, ["i0"]).shape == (1, 2)
