"""How many requests a second the server takes, with micro-batching and one by one.

    python benchmarks/serve.py --run runs/amazon_industrial_small
    python benchmarks/serve.py --items 1000000             # start-up of a catalogue of that size

Open loop: requests leave at a fixed rate, whether or not earlier ones were answered, and latency
counts from the moment at which a request was due. A rate is sustained if p99 is at most 250 ms and
nothing fails. Rates go up until two in turn are not sustained. Before that, both ways and the
offline ranking take turns under 64 clients that ask as fast as they are answered, which says how
much each can answer at most even on a machine that is busy with other things.

The server is ``serve.py`` in a process of its own with one thread for the search, the clients
another process; the yardstick is the offline ranking of the same histories with one thread, as
evaluation does it. The ratio is micro-batching against one by one, at most; parity: the lists are
those of the offline ranking.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import fire
import numpy as np
import pandas as pd
import torch

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.split import statistics
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.allocator import keep_freed_memory
from minionerec.experiment.commit import committed
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.model.policy import Policy
from minionerec.serving.recommender import Recommender
from minionerec.serving.served import Versions
from minionerec.serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.25  # seconds, at the 99th percentile
SHARES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # of what a way answers at most
CONNECTIONS = 64
CLIENTS = 64
TURNS = 4
K = 10
BATCH = ServerSettings.model_fields["max_batch"].default


class Load(NamedTuple):
    """What a rate has led to."""

    rate: float
    p50: float
    p99: float
    failed: int

    @property
    def is_sustained(self) -> bool:
        """Whether nobody had to wait too long or in vain."""
        return self.failed == 0 and self.p99 <= LIMIT


class Serving:
    """A server process."""

    def __init__(self, run: Path, *flags: str):
        start = time.perf_counter()
        words = [sys.executable, ROOT / "serve.py", "--run", run, "--port", "0", *flags]
        self.process = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        if self.process.stdout is None:
            raise RuntimeError("a process without output")
        self.process.stdout.readline()
        address = self.process.stdout.readline().partition(",")[0]
        self.port = int(address.rpartition(":")[2])
        while asyncio.run(self._ready()) != 200:
            time.sleep(0.05)
        self.seconds = time.perf_counter() - start

    async def _ready(self) -> int:
        try:
            connection = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return 0
        status, _ = await ask(connection, b"", "GET", "/ready")
        connection[1].close()
        return status

    def memory_mb(self) -> float:
        """Most memory that the process has held."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(
    connection: Connection, body: bytes, method: str = "POST", path: str = "/recommend"
) -> tuple[int, bytes]:
    """One request on a connection that stays open: status and body."""
    reader, writer = connection
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    lines = answer.decode().lower().split("\r\n")
    length = next(line for line in lines if line.startswith("content-length"))
    content = await reader.readexactly(int(length.partition(":")[2]))
    return int(lines[0].split()[1]), content


async def offer(port: int, bodies: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Send requests at a fixed rate."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    latencies: list[float] = []
    statuses: list[int] = []

    async def one(number: int, due: float) -> None:
        connection = await free.get()
        status, _ = await ask(connection, bodies[number % len(bodies)])
        free.put_nowait(connection)
        latencies.append(time.perf_counter() - due)
        statuses.append(status)

    start = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait()[1].close()
    failed = sum(status != 200 for status in statuses)
    p50, p99 = np.quantile(latencies, [0.5, 0.99]).tolist()
    return Load(rate, p50, p99, failed)


def sustained(
    run: Path, name: str, bodies: Sequence[bytes], most: float, seconds: float, max_batch: int
) -> float:
    """The highest rate that is sustained, in requests a second; prints every rate.

    Args:
        run: what is served.
        name: of the way.
        bodies: of requests.
        most: answers a second under clients that ask as fast as they are answered.
        seconds: that each rate is held.
        max_batch: of the server.
    """
    serving = Serving(run, "--fusion", "false", "--max_batch", str(max_batch))
    best = 0.0
    missed = 0
    try:
        asyncio.run(offer(serving.port, bodies, most * SHARES[0], 3.0))  # warm
        for share in SHARES:
            load = asyncio.run(offer(serving.port, bodies, most * share, seconds))
            print(
                f"{name}: {load.rate:.1f} requests/s ({share:.2f} of at most): p50 "
                f"{load.p50 * 1e3:.0f} ms, p99 {load.p99 * 1e3:.0f} ms, {load.failed} failed",
                flush=True,
            )
            missed = 0 if load.is_sustained else missed + 1
            if load.is_sustained:
                best = load.rate
            if missed == 2:
                break
        print(f"{name}: sustains {best:.1f} requests/s; {serving.memory_mb():.0f} MB", flush=True)
    finally:
        serving.stop()
    return best


async def flood(port: int, bodies: Sequence[bytes], seconds: float) -> float:
    """Answers a second when 64 clients each ask again as soon as they are answered."""
    answered = 0
    until = time.perf_counter() + seconds

    async def client(first: int) -> None:
        nonlocal answered
        connection = await asyncio.open_connection("127.0.0.1", port)
        number = first
        while time.perf_counter() < until:
            await ask(connection, bodies[number % len(bodies)])
            number += CLIENTS
            answered += 1
        connection[1].close()

    start = time.perf_counter()
    await asyncio.gather(*(client(first) for first in range(CLIENTS)))
    return answered / (time.perf_counter() - start)


def capacities(
    run: Path, bodies: Sequence[bytes], recommender: Recommender, histories: list[list[int]]
) -> dict[str, float]:
    """What each way can answer at most, in turns on the same machine; medians."""
    servers = {}
    for name, max_batch in (("micro-batching", BATCH), ("one by one", 1)):
        servers[name] = Serving(run, "--fusion", "false", "--max_batch", str(max_batch))
    taken: dict[str, list[float]] = {"offline": [], **{name: [] for name in servers}}
    for turn in range(TURNS + 1):
        some = histories[:96]
        rates = {"offline": offline_rate(recommender, some)[0]}
        for name, serving in servers.items():
            rates[name] = asyncio.run(flood(serving.port, bodies, 3.0))
        for name, rate in rates.items():
            if turn:  # the first one warms up
                taken[name].append(rate)
    found = {}
    for name, values in taken.items():
        found[name] = float(np.median(values))
        shown = ", ".join(f"{value:.1f}" for value in values)
        print(f"at most, {name}: {found[name]:.1f} a second ({shown})", flush=True)
    for serving in servers.values():
        serving.stop()
    return found


def offline_rate(
    recommender: Recommender, histories: Sequence[Sequence[int]]
) -> tuple[float, list[list[int]]]:
    """Users a second of the offline ranking, and its lists."""
    start = time.perf_counter()
    lists: list[list[int]] = [[] for _ in histories]
    for number, (items, _) in recommender.rank(histories, K):
        lists[number] = items
    return len(histories) / (time.perf_counter() - start), lists


def same_lists(port: int, bodies: Sequence[bytes], expected: Sequence[Sequence[str]]) -> bool:
    """Whether the server's items are the offline ranking's, in the same order."""

    async def answers() -> list[list[str]]:
        connection = await asyncio.open_connection("127.0.0.1", port)
        found = []
        for body in bodies:
            _, content = await ask(connection, body)
            found.append([item["item_id"] for item in json.loads(content)["lists"][0]])
        connection[1].close()
        return found

    return asyncio.run(answers()) == list(expected)


def startup(items: int) -> None:
    """Time and memory until a server of a random catalogue and model is ready."""
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(Path(folder), items)
        serving = Serving(run)
        print(f"{items:,} items: ready in {serving.seconds:.1f} s, {serving.memory_mb():.0f} MB")
        serving.stop()


def random_run(folder: Path, items: int) -> Path:
    """A run with that many items, three users, and an untrained model."""
    config = {"model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 3}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 512}
    experiment = Experiment(
        name="random",
        output_dir=str(folder),
        model={"template": "compact", "text_vocab_size": 300, "config": config},
    )
    ids = [f"item{number}" for number in range(items)]
    table = pd.DataFrame({"item_id": ids, "title": [f"thing {item_id}" for item_id in ids]})
    none: pd.Series = pd.Series([[]] * items, dtype=object)
    table = table.assign(description="", brand="", categories=none)
    rows = []
    for user in range(3):
        for step, split in enumerate(("train", "train", "valid", "test")):
            rows.append((f"user{user}", ids[user + step], step, split))
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"])
    interactions["rating"] = float("nan")
    users = pd.factorize(interactions["user_id"])[0]
    codes = pd.factorize(interactions["item_id"])[0]
    times = interactions["timestamp"].to_numpy()
    splits = interactions["split"].to_numpy(object)
    data = stage_path(experiment, "data")
    with committed(data, "data", settings_of(experiment, "data"), []) as staging:
        table.to_parquet(staging / "items.parquet")
        interactions.to_parquet(staging / "interactions.parquet")
        stats = statistics(users, codes, times, splits, items, experiment.data.max_history)
        write_json(staging / "stats.json", {"source": "tables", "split": "own", **stats})
    # Scattered over the code space, none twice: 7,368,787 has no common factor with 256 ** 3
    sids = {}
    for number, item_id in enumerate(ids):
        place = number * 7_368_787 % 256**3
        sids[item_id] = [place >> 16, place >> 8 & 255, place & 255]
    sids_path = stage_path(experiment, "sids")
    parents = [opened(data)]
    with committed(sids_path, "sids", settings_of(experiment, "sids"), parents) as staging:
        content = {"sids": sids, "codebook_sizes": [256, 256, 256], "method": "random"}
        (staging / "sids.json").write_text(json.dumps(content))
    catalogue = Catalogue.open(experiment)
    policy = Policy.create(catalogue)
    settings = settings_of(experiment, "sft")
    with committed(stage_path(experiment, "sft"), "sft", settings, catalogue.parents) as staging:
        policy.save(policy.model, staging)
    return data.parent


def main(run: str = "", items: int = 0, users: int = 256, seconds: float = 6.0) -> None:
    """Measure a run under load, or the start of a server with so many items."""
    if items:
        startup(items)
        return
    if not run:
        raise UserError("--run is missing; name a run with a model, e.g. --run runs/quickstart")
    keep_freed_memory()  # as evaluate.py does
    torch.set_num_threads(1)
    recommender = Versions(Path(run), fusion=False).current.recommender
    rows = recommender.catalogue.samples.splits["test"][:users]
    histories = [list(row.history) for row in rows]
    ids = recommender.catalogue.item_ids
    bodies = []
    for history in histories:
        asked = {"histories": [[ids[item] for item in history]], "k": K}
        bodies.append(json.dumps(asked).encode())
    most = capacities(Path(run), bodies, recommender, histories)
    before, lists = offline_rate(recommender, histories)
    print(f"offline: {before:.1f} users/s", flush=True)
    way = "micro-batching"
    batched = sustained(Path(run), way, bodies, most[way], seconds, BATCH)
    way = "one by one"
    alone = sustained(Path(run), way, bodies, most[way], seconds, 1)
    after, _ = offline_rate(recommender, histories)
    offline = (before + after) / 2
    print(f"offline: {after:.1f} users/s; micro-batching is {batched / offline:.2f} of it")
    serving = Serving(Path(run), "--fusion", "false")
    expected = [[ids[item] for item in items] for items in lists[:64]]
    same = same_lists(serving.port, bodies[:64], expected)
    serving.stop()
    if alone:
        print(f"sustained: micro-batching is {batched / alone:.2f} of one by one")
    ratio = most["micro-batching"] / most["one by one"]
    print(f"at most: micro-batching is {most['micro-batching'] / most['offline']:.2f} of offline")
    print(f"ratio: {ratio:.2f}  parity: {'ok' if same else 'FAILED'}")
    sys.exit(not same)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
