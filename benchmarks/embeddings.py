"""Peak memory of the encoder stage as the catalogue grows.

Against the stock way (``SentenceTransformer.encode`` of a list).

    python benchmarks/embeddings.py                              # 20,000 and 200,000 items python
    benchmarks/embeddings.py --items 100000,1000000 --ways disk      # the stage with a constant
    instead of a network

The encoder is a random one-layer BERT with 384-wide output, so that memory and not the model is
what is measured. Each run is a process of its own; its peak resident memory includes Python, torch
and the mapped output. Parity: on the smallest catalogue both ways give the same vectors within
1e-5.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import fire
import numpy as np

from minionerec.experiment.settings import Experiment, SidSettings

if TYPE_CHECKING:
    from minionerec.experiment.settings import Experiment

WORDS = [
    "steel",
    "bolt",
    "nut",
    "red",
    "blue",
    "long",
    "short",
    "heavy",
    "pump",
    "valve",
    "filter",
    "glove",
    "tape",
    "drill",
]


def main(
    items: tuple[int, ...] | int = (20_000, 200_000),
    ways: tuple[str, ...] | str = ("stock", "ours"),
) -> None:
    """Measure every size in every way (stock, ours, disk) and print a table."""
    ways = (ways,) if isinstance(ways, str) else ways
    sizes = [int(size) for size in (items if isinstance(items, tuple) else [items])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_wide_encoder(folder)
        print(f"{'items':>10} {'way':>6} {'peak MB':>8} {'seconds':>8} {'items/s':>8}")
        for size in sizes:
            make_catalogue(folder, size)
            for way in ways:
                done = subprocess.run(
                    [sys.executable, __file__, "one", str(folder), str(size), way],
                    check=True,
                    text=True,
                    stdout=subprocess.PIPE,
                )
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{size:>10,} {way:>6} {row['megabytes']:>8.0f} {row['seconds']:>8.1f} "
                    f"{size / row['seconds']:>8.0f}",
                    flush=True,
                )
            if size == min(sizes) and {"stock", "ours"} <= set(ways):
                ours, stock = (
                    np.load(folder / f"ours-{size}" / "bench" / "embeddings" / "embeddings.npy"),
                    np.load(folder / "stock.npy"),
                )
                print(f"parity: largest difference {np.abs(ours - stock).max():.1e}")


def one(folder: str, size: int, way: str) -> None:
    """One size one way, in a process of its own; prints peak memory and seconds as JSON."""
    start = time.perf_counter()
    {"ours": ours, "stock": stock, "disk": disk}[way](Path(folder), size)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def ours(folder: Path, size: int) -> None:
    """The stage."""
    from rqvae import embed_items

    embed_items.main(experiment(folder, size))


def disk(folder: Path, size: int) -> None:
    """The stage with a network that costs nothing: what texts, parts and output take."""
    from rqvae import embed_items

    def constant(texts: list[str]) -> np.ndarray:
        return np.full((len(texts), 384), 384**-0.5, np.float32)

    def encode_with(model: object) -> Callable[[list[str]], np.ndarray]:
        return constant

    embed_items.encode_with = encode_with
    embed_items.main(experiment(folder, size))


def stock(folder: Path, size: int) -> None:
    """A list of texts, one call, one array."""
    import pandas as pd
    from sentence_transformers import SentenceTransformer

    items = pd.read_parquet(folder / f"ours-{size}" / "bench" / "data" / "items.parquet")
    texts = [
        f"{title} {description}".strip()
        for title, description in zip(items["title"], items["description"], strict=True)
    ]
    rows = SentenceTransformer(str(folder / "wide"), device="cpu").encode(
        texts, batch_size=1024, normalize_embeddings=True, show_progress_bar=False
    )
    np.save(folder / "stock.npy", rows)


def experiment(folder: Path, size: int) -> Experiment:
    """Where a catalogue of this size lives."""
    return Experiment(
        name="bench",
        output_dir=str(folder / f"ours-{size}"),
        sids=SidSettings(encoder=str(folder / "wide")),
    )


def make_catalogue(folder: Path, size: int) -> None:
    """A committed data stage of distinct short texts."""
    import pandas as pd

    from minionerec.experiment.commit import committed
    from minionerec.experiment.stages import settings_of, stage_path

    rng = np.random.default_rng(0)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (size, 4))]
    titles = [f"{' '.join(row)} {i // 3600} {i // 60 % 60} {i % 60}" for i, row in enumerate(words)]
    data = stage_path(experiment(folder, size), "data")
    with committed(data, "data", settings_of(experiment(folder, size), "data"), []) as staging:
        pd.DataFrame(
            {"item_id": [f"i{i}" for i in range(size)], "title": titles, "description": ""}
        ).to_parquet(staging / "items.parquet", row_group_size=2**16)


def save_wide_encoder(folder: Path) -> None:
    """A 32-wide BERT layer whose pooled output a random matrix widens to 384."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    from benchmarks.encoder import save_encoder

    narrow = SentenceTransformer(str(save_encoder(folder, WORDS, width=32)), device="cpu")
    torch.manual_seed(1)
    SentenceTransformer(
        modules=[*narrow, Dense(32, 384, activation_function=torch.nn.Identity())], device="cpu"
    ).save(str(folder / "wide"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        fire.Fire(main)
