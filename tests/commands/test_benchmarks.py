"""Every benchmark runs, finds both sides equal and ends with its ratio; what the ratio is depends on the machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec.catalogue.sources.tables import load
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
        ("sids", []),
        ("rows", []),
        ("trie", []),
        ("filters", ["--items", 20_000]),
    ],
)
def test_every_benchmark_ends_with_its_ratio_and_parity(name, flags):
    repeats = [] if name == "sids" else ["--repeats", 1]
    last = run(f"benchmarks/{name}.py", *repeats, *flags).strip().splitlines()[-1]
    assert re.fullmatch(r"ratio: \d+\.\d+  parity: ok", last)


def test_an_unknown_shape_is_one_line():
    assert (
        run("benchmarks/decode.py", "--shape", "huge", code=2).strip()
        == "--shape: got 'huge', expected one of tiny, qwen0.5b, qwen1.5b"
    )


def gpu_script(out, *words) -> list[dict]:
    """The lines that ``benchmarks/gpu.sh --smoke`` leaves."""
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--smoke", "--out", str(out), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_part_of_the_gpu_script_leaves_a_line_also_where_no_time_is_left(tmp_path):
    parts = "machine,decode,sft,rl"
    rows = gpu_script(tmp_path, "--seconds", "3", "--only", parts)
    assert [row["part"] for row in rows] == ["machine", "decode-tiny", "sft-tiny", "rl-tiny"]
    assert {row["code"] for row in rows} == {"no time left"}
    rows = gpu_script(tmp_path, "--only", "machine")[4:]
    assert [row["code"] for row in rows] == ["0"]
    assert rows[0]["last"].startswith("matmul peak: float32 ")


@pytest.mark.slow
def test_all_of_the_gpu_script_runs_on_a_cpu(tmp_path):
    rows = gpu_script(tmp_path, "--seconds", "800")
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
    assert source.interactions.iloc[0].tolist()[:2] == ["A00000079", "B00000103"]
