"""Every benchmark runs, finds both sides equal and ends with its ratio; what the ratio is depends
on the machine.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from operator import gt
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceiling, growth
from minionerec.catalogue.sources import embedded
from minionerec.catalogue.sources.tables import load
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import DataSettings

ROOT = Path(__file__).resolve().parents[2]


def run(*words, code=0):
    environment = {
        key: value for key, value in os.environ.items() if key != "MINIONEREC_REAL_DATA"
    } | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, (
        f"{words} -> {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


def test_a_training_benchmark_on_the_embedded_catalogue_ends_with_its_ratio_and_parity():
    last = (
        run("benchmarks/sft_step.py", "--repeats", 1, "--batch", 2, "--micro_batches", 1)
        .strip()
        .splitlines()[-1]
    )
    assert re.fullmatch(r"ratio: \d+\.\d+  parity: ok", last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, flags",
    [
        ("decode", ["--batch", 1]),
        ("rl_step", ["--groups", 2]),
        ("sids", ["--recipe_epochs", 0]),
        ("rows", []),
        ("trie", []),
        ("filters", ["--items", 20_000]),
        ("cpu_bfloat16", ["--batch", 16]),
    ],
)
def test_every_benchmark_ends_with_its_ratio_and_parity(name, flags):
    repeats = [] if name == "sids" else ["--repeats", 1]
    last = run(f"benchmarks/{name}.py", *repeats, *flags).strip().splitlines()[-1]
    assert re.fullmatch(r"ratio: \d+\.\d+  parity: ok", last)


def test_an_unknown_shape_is_one_line():
    assert (
        run("benchmarks/decode.py", "--shape", "huge", code=2).strip()
        == "--shape: got 'huge', expected one of tiny, smollm2, qwen0.5b, qwen1.5b"
    )


def gpu_script(out, *words, python=sys.executable) -> list[dict]:
    """The lines that ``benchmarks/gpu.sh`` leaves."""
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--out", str(out), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_part_of_the_gpu_script_leaves_a_line_also_where_no_time_is_left(tmp_path):
    parts = "machine,decode,sft,rl"
    rows = gpu_script(tmp_path, "--smoke", "--seconds", "3", "--only", parts)
    assert [row["part"] for row in rows] == ["machine", "decode-tiny", "sft-tiny", "rl-tiny"]
    assert {row["code"] for row in rows} == {"no time left"}
    rows = gpu_script(tmp_path, "--smoke", "--only", "machine")[4:]
    assert [row["code"] for row in rows] == ["0"]
    assert rows[0]["last"].startswith("matmul peak: float32 ")


@pytest.mark.slow
def test_all_of_the_gpu_script_runs_on_a_cpu(tmp_path):
    rows = gpu_script(tmp_path, "--smoke", "--seconds", "800")
    assert len(rows) >= 11
    assert {row["code"] for row in rows} == {"0"}
    exact = [row["last"] for row in rows if row["part"].endswith("tiny")]
    assert all(last.endswith("parity: ok") for last in exact)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "parts"])
def test_synthetic_tables_are_prepared_like_any_shops(kind, tmp_path):
    """Every kind of file holds the same interactions, so the stage writes the same table."""
    tables = ROOT / "benchmarks" / "tables.py"
    run(tables, "--out", tmp_path / kind, "--interactions", 2000, "--kind", kind)
    source = load(DataSettings(source="tables", path=str(tmp_path / kind)))
    assert source.items["item_id"].tolist() == [f"B{item:08d}" for item in range(200)]
    users = source.interactions["user_id"].value_counts()
    assert len(users) == 100 and users.min() >= 5 and users.max() <= 50
    assert source.interactions.iloc[0].tolist()[:2] == ["A00000062", "B00000139"]


def test_the_stages_run_at_every_size_and_ends_with_their_costs(tmp_path):
    words = ["benchmarks/stages.py", "--out", tmp_path, "--stages", "data,embeddings"]
    lines = run(*words, "--sizes", "2000,3000").strip().splitlines()
    assert lines[-4] == "| stage | 2,000 interactions | 3,000 interactions |"
    cost = r"\d+\.\d s, \d+ MB"
    for line, stage in zip(lines[-2:], ("data", "embeddings"), strict=True):
        assert re.fullmatch(rf"\| {stage} \| {cost} \| {cost} \|", line)
    again = run(*words, "--sizes", 2000, code=2).strip()
    assert again.endswith(f"{tmp_path}/2000/data: is there already; --redo makes it again")


def test_a_place_is_how_many_items_are_likelier_than_the_chosen_one():
    chances = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    assert ceiling.places(chances, np.array([0, 2])).tolist() == [2, 0]


def test_the_generator_itself_gives_the_chances_of_the_taste_that_a_buyer_has():
    """And a taste is one of all combinations, each once, whose chances add up to 1."""
    rng = np.random.default_rng(0)
    catalogue = embedded.make_catalogue(rng)
    buyers = embedded.make_buyers(len(catalogue.items), rng).of(np.arange(3))
    now = np.full(3, embedded.load(0).interactions["timestamp"].max())
    every = ceiling.tastes()
    assert len(set(every)) == len(every)
    chances = ceiling.chances_by_taste(catalogue, buyers, now)
    assert np.allclose(chances.sum(axis=2), 1)
    truth = embedded.next_item_chances(catalogue, buyers, now)
    for user in range(3):
        own = (buyers.line[user], buyers.scale[user], tuple(buyers.likes[user]))
        assert np.array_equal(chances[every.index(own), user], truth[user])


@pytest.mark.slow
def test_knowing_the_tastes_is_the_most_that_a_ranking_can_know(tmp_path):
    flags = ["--config", "configs/quickstart.yaml", "--output_dir", tmp_path]
    run("data/prepare.py", *flags)
    lines = run("benchmarks/ceiling.py", "--run", tmp_path / "quickstart").splitlines()
    known, inferred = ([float(word) for word in line.split()[2:]] for line in lines[-2:])
    assert all(map(gt, known, inferred))
    assert lines[0].startswith("1,670 test rows")


@pytest.mark.slow
def test_a_small_and_a_large_table_take_turns_and_end_with_the_ratio(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(growth, "SIZES", (8_000, 10_000))
    monkeypatch.setattr(growth, "TURNS", 2)
    growth.main(tmp_path, ["--sft.tasks", "{sid_to_sid: 1}"])
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r"ratio: \d+\.\d+ a step, \d+\.\d+ a token", last)


# Stands for the interpreter: writes down what it is to run and makes the folders that it would
NOTES = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
if words[0] == "-" or (words[0] == "-c" and "json.load" in words[1]):
    os.execv(sys.executable, [sys.executable, *words])
with open({notes!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if "--output_dir" in words:
    folder = pathlib.Path(words[words.index("--output_dir") + 1], words[words.index("--name") + 1])
    for stage in ("data", "embeddings", "sids"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
"""
TRAININGS = [
    f"{name}-{stage}"
    for name in ("small", "smollm2")
    for stage in ("sft", "evaluate-sft", "rl", "evaluate-rl")
]
MADE = ["made-data", "made-embeddings", "made-sids"]


def carried(folder: Path) -> Path:
    """What a GPU without network is given."""
    for stage in ("data", "embeddings", "sids"):
        (folder / "run" / stage).mkdir(parents=True)
    manifest = {"settings": {"data.path": str(folder)}}
    (folder / "run" / "data" / "MANIFEST.json").write_text(json.dumps(manifest))
    for piece in ("smollm2.gguf.0", "smollm2.gguf.1"):
        (folder / piece).write_text(piece)
    return folder


@pytest.mark.parametrize("shapes, made", [(["tiny"], MADE), (["tiny", "qwen0.5b"], [])])
def test_every_command_of_the_gpu_script_is_understood_by_what_it_calls(tmp_path, shapes, made):
    """All parts, on a CPU and on a GPU, with an interpreter that only looks at its words."""
    notes, python = tmp_path / "notes", tmp_path / "python"
    python.write_text(NOTES.format(python=sys.executable, notes=str(notes)))
    python.chmod(0o755)
    words = ["--smoke"] if made else ["--carry", str(carried(tmp_path / "carry"))]
    rows = gpu_script(tmp_path / "out", *words, python=python)
    benchmarks = [f"{name}-{shape}" for shape in shapes for name in ("decode", "sft", "rl")]
    assert [row["part"] for row in rows] == ["machine", *benchmarks, *made, *TRAININGS]
    assert {row["code"] for row in rows} == {"0"}

    for words in map(json.loads, notes.read_text().splitlines()):
        if words[0].startswith("benchmarks/"):
            main = importlib.import_module(words[0][: -len(".py")].replace("/", ".")).main
            flags = {word[2:] for word in words if word.startswith("--")}
            assert flags <= set(inspect.signature(main).parameters), words
        elif words[0] != "-c":
            start = next(i for i, word in enumerate(words) if word.startswith("--"))
            read_command_line(None, words[start:], own=())
