"""What a stage costs as the data grows: CPU seconds and peak memory of every command.

    python benchmarks/stages.py --out big                          # 0.1, 1 and 10 million
    python benchmarks/stages.py --out big --sizes 100000,1000000 --stages data,sids

The synthetic tables of ``benchmarks/tables.py``, twenty interactions a user and ten an item, with
vectors of 384 numbers in place of an encoder's; no user and no item is left out. A command that
needs earlier stages finds them where an earlier call has made them. Tables and stages stay in the
folder; ``--redo`` makes the measured ones again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fire

from minionerec.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 384  # of a vector
SCRIPTS = {
    "data": "data/prepare.py",
    "audit": "data/audit.py",
    "embeddings": "rqvae/embed_items.py",
    "sids": "rqvae/build_sids.py",
    "markov": "baselines/run.py",
}
FLAGS = {"markov": ["--baselines.methods", "markov"]}
FOLDERS = {"markov": "baselines/markov"}  # of a stage whose folder has another name


@dataclass(frozen=True)
class Cost:
    """What one command took: CPU seconds, and the most memory it held, in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.memory / 1e6:,.0f} MB"


def main(
    out: str,
    sizes: tuple[int, ...] | int = (100_000, 1_000_000, 10_000_000),
    stages: tuple[str, ...] | str = tuple(SCRIPTS),
    redo: bool = False,
) -> None:
    """Run the stages at every size and print a table.

    Args:
        out: folder for tables and stages.
        sizes: how many interactions.
        stages: of data, audit, embeddings, sids and markov, in this order.
        redo: remove what these stages have made before.

    Raises:
        UserError: there is no such stage, or a command ends with an error.
    """
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    stages = (stages,) if isinstance(stages, str) else stages
    for stage in stages:
        if stage not in SCRIPTS:
            raise UserError(f"--stages: got '{stage}', expected some of {', '.join(SCRIPTS)}")
    header = " | ".join(f"{size:,} interactions" for size in sizes)
    rows = [f"| stage | {header} |", f"|---{'|---' * len(sizes)}|"]
    for size in sizes:
        make_tables(Path(out), size)
    for stage in stages:
        costs = [str(measure(stage, Path(out), size, redo)) for size in sizes]
        rows.append(f"| {stage} | {' | '.join(costs)} |")
        print(rows[-1], flush=True)
    print("\n".join(["", *rows]))


def make_tables(out: Path, size: int) -> None:
    """Write the synthetic tables of a size unless they are there."""
    folder = tables_of(out, size)
    if (folder / "vectors.json").is_file():
        return
    script = ROOT / "benchmarks" / "tables.py"
    words = ["--out", str(folder), "--interactions", str(size), "--vectors", str(WIDTH)]
    cost_of([str(script), *words])


def tables_of(out: Path, size: int) -> Path:
    """Where the tables of a size lie."""
    return out / "tables" / str(size)


def measure(stage: str, out: Path, size: int, redo: bool) -> Cost:
    """Run a stage on the tables of a size.

    Raises:
        UserError: it is there already, or the command ends with an error.
    """
    tables = tables_of(out, size)
    made = out / str(size) / FOLDERS.get(stage, stage)
    if redo:
        shutil.rmtree(made, ignore_errors=True)
    if made.exists():
        raise UserError(f"{made}: is there already; --redo makes it again")
    settings = out / f"{size}.yaml"
    settings.write_text(
        f"name: '{size}'\n"
        f"output_dir: {out.resolve()}\n"
        f"data: {{source: tables, path: {tables.resolve()}, k_core: 1}}\n"
        "sids:\n"
        f"  embeddings: {tables.resolve() / 'vectors.npy'}\n"
        "  codebook_sizes: [0, 0, 0]\n"
    )
    script = str(ROOT / SCRIPTS[stage])
    return cost_of([script, "--config", str(settings), *FLAGS.get(stage, [])])


def cost_of(words: list[str]) -> Cost:
    """Run a Python script to its end.

    Raises:
        UserError: it ends with an error, which it has printed.
    """
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise UserError(f"{' '.join(words)}: ended with exit code {code}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ``ru_maxrss``
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
