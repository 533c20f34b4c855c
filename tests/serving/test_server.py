"""The server over real HTTP: evaluation's answers, one line for every mistake, versions that never
mix.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pandas as pd
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minionerec.errors import UserError
from minionerec.experiment.commit import committed
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import evaluation_path, settings_of, stage_path
from minionerec.serving.app import make_app
from minionerec.serving.served import Served, Versions
from minionerec.serving.settings import read_flags
from tests.serving.test_recommender import made, predictions, test_rows  # noqa: F401


class Client:
    """A connection that is kept, as most clients keep one."""

    def __init__(self, port):
        self.port = port
        self.kept = threading.local()

    def __call__(self, method, path, body=None, headers=None):
        """Status and parsed answer."""
        if not hasattr(self.kept, "connection"):
            self.kept.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        self.kept.connection.request(method, path, raw, headers or {})
        answer = self.kept.connection.getresponse()
        content = answer.read()
        is_json = answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()

    def lists(self, histories, **asked):
        status, answer = self("POST", "/recommend", {"histories": histories, **asked})
        assert status == 200, answer
        return answer["lists"]


def ids_of(listed):
    return [item["item_id"] for item in listed]


@contextmanager
def listening(versions, api_key=None, **flags):
    """A server on a port of its own, in a thread."""
    texts = {name: str(value) for name, value in flags.items()}
    app = make_app(versions, read_flags({"run": ".", **texts}), api_key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    client = Client(listener.getsockname()[1])
    try:
        while not server.started:
            time.sleep(0.01)
        yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def run(made):  # noqa: F811
    return stage_path(made, "sft").parent


@pytest.fixture(scope="module")
def versions(run):
    return Versions(run)


@pytest.fixture(scope="module")
def client(versions):
    with listening(versions) as client:
        yield client


def test_answers_are_the_evaluations_whoever_shares_the_search(client, made):  # noqa: F811
    """40 users in one request, then one by one from eight clients at the same time: the same items
    in the same order; sums over other batches may round the fifth decimal of a score elsewhere.
    """
    rows, histories = predictions(evaluation_path(made)), test_rows(made)
    together = client.lists(histories, k=12)
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda history: client.lists([history], k=12)[0], histories))
    for lists in (together, alone):
        for row, listed in zip(rows, lists, strict=True):
            assert [item["item_id"] for item in listed] == row["item_ids"]
            assert [item["score"] for item in listed] == pytest.approx(row["scores"], abs=2e-5)
            assert [item["rank"] for item in listed] == list(range(1, 13))
    assert alone[0][0]["title"].startswith("thing")


def test_requests_narrow_what_is_recommended(client, made):  # noqa: F811
    everything = [item["item_id"] for item in client.lists([["i1"]], k=12)[0]]
    assert "i1" in {item["item_id"] for item in client.lists([["i1"]], allow=["i1", "i2"])[0]}
    shown = client.lists([["i1"], ["i2", "i3"]], exclude_history=True, allow=["i1", "i2", "i3"])
    assert [{item["item_id"] for item in listed} for listed in shown] == [{"i2", "i3"}, {"i1"}]
    denied = [item["item_id"] for item in client.lists([["i1"]], k=12, deny=everything[:6])[0]]
    assert denied[:6] == everything[6:] and len(denied) == 12
    found = client.lists([["i1"]], where={"title": ["thing 2 of kind 1"]}, explain=True)[0]
    assert [item["item_id"] for item in found] == ["i8"]
    assert (
        found[0]["explanation"]["codes"] == [0, 1] and len(found[0]["explanation"]["nearest"]) == 1
    )
    assert client.lists([["i1"]], allow=[]) == [[]]


BAD = [
    (b"", "body.histories: got {}: Field required"),
    (b"[1", "body: got '[1': Invalid JSON: EOF while parsing a list at line 1 column 2"),
    (b"[" * 100_000, "body: got '[[[[[[[[[[[[[[[[[[[[': Invalid JSON: recursion limit exceeded at line 1 column 202"),
    (b'{"histories": [["i1"]], "n": 3}', "body.n: got 3: Extra inputs are not permitted"),
    (b'{"histories": []}', "body.histories: got []: List should have at least 1 item after validation, not 0"),
    (b'{"histories": [["i1", 5]]}', "body.histories[0][1]: got 5: Input should be a valid string"),
    (b'{"histories": [["i1"]], "k": "3"}', "body.k: got '3': Input should be a valid integer"),
    (b'{"histories": [["i1"]], "k": 13}', "body.k: got 13, expected at most 12"),
    (b'{"histories": [["x\\n\\u001b[1m"]]}', "history: 1 of 1 ids are not in the catalogue: 'x\\n\\x1b[1m'; ids look like 'i0'"),
    (b'{"histories": [["i1"]], "where": {"price": [1, 2]}}', "where.price: there is no such column; expected one of item_id, title, description, brand, categories"),
]  # fmt: skip


@pytest.mark.parametrize("body, message", BAD)
def test_a_mistake_is_answered_with_one_line_that_names_it(client, body, message):
    status, answer = client("POST", "/recommend", body)
    assert (status, answer["error"]) == (422, message)


def test_other_paths_methods_and_sizes_are_one_line_too(client, versions):
    assert client("GET", "/recommend")[0] == 405
    status, answer = client("GET", "/nothing")
    assert (status, answer) == (
        404,
        {"error": "GET /nothing: there is no such path or method; see /docs"},
    )
    with listening(versions, max_body_bytes=1000) as small:
        status, answer = small("POST", "/recommend", b" " * 1001)
        assert (status, answer["error"]) == (
            413,
            "body: more than 1,000 bytes; use recommend.py for many users",
        )
        many = [["i1"]] * 65
        assert small("POST", "/recommend", {"histories": many})[0] == 422


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {"histories": st.lists(st.lists(st.sampled_from(["i1", "i2", "i23", "i24", ""]), max_size=3), max_size=2) | VALUES},
    optional={
        "k": st.integers(-2, 14) | VALUES,
        "exclude_history": st.booleans() | VALUES,
        "allow": st.lists(st.sampled_from(["i1", "i5", "i24"]), max_size=3) | VALUES,
        "deny": st.lists(st.sampled_from(["i1", "i5", "i24"]), max_size=3) | VALUES,
        "where": st.dictionaries(st.sampled_from(["brand", "categories", "title", "x"]), VALUES, max_size=2) | VALUES,
        "explain": st.booleans(),
    },
)  # fmt: skip
BODIES = (
    st.binary(max_size=40)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | NEARLY.map(lambda value: json.dumps(value).encode())
)


def check_hostile(client, path, body):
    status, answer = client("POST", path, body)
    assert status == 200 or 400 <= status < 500, (status, answer)
    if status != 200:
        assert list(answer) == ["error"] and len(answer["error"].splitlines()) == 1
        assert len(answer["error"]) < 400


@pytest.mark.parametrize("examples", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_body_ends_in_a_crash_or_a_fault_of_the_server(client, examples):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(BODIES)
    def ask(body):
        check_hostile(client, "/recommend", body)

    ask()
    assert client("GET", "/ready") == (200, {"status": "ready"})
    assert 'status="5' not in client("GET", "/metrics")[1]


def longer_run(made, run, name):  # noqa: F811
    """A run beside the first with eight more items, as rqvae/add_items.py makes it."""
    extended = made.changed({"name": name})
    for stage in ("data", "sids"):
        source = run / stage
        target = stage_path(extended, stage)
        with committed(target, stage, settings_of(extended, stage), [opened(source)]) as staging:
            for file in source.iterdir():
                if file.name != "MANIFEST.json":
                    (staging / file.name).write_bytes(file.read_bytes())
            if stage == "data":
                items = pd.read_parquet(source / "items.parquet")
                new = items.head(8).assign(item_id=[f"i{n}" for n in range(24, 32)])
                pd.concat([items, new]).to_parquet(staging / "items.parquet")
            else:
                table = json.loads((source / "sids.json").read_text())
                table["sids"] |= {f"i{n}": [n % 8, 3] for n in range(24, 32)}
                (staging / "sids.json").write_text(json.dumps(table))


ASKING = """
import http.client, json, os, sys
port, body, stop = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
while not os.path.exists(stop):
    connection.request("POST", "/recommend", body)
    answer = connection.getresponse()
    print(answer.status, answer.read().decode(), flush=True)
"""


@pytest.mark.parametrize("reloads", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_reloads_under_load_fail_nobody_and_never_mix_versions(made, run, tmp_path, reloads):  # noqa: F811
    """Reload, rollback, reload ..., while two processes ask: every answer is wholly of the version
    that it names.
    """
    longer_run(made, run, f"other-{reloads}")
    body = json.dumps({"histories": test_rows(made)[:8], "k": 12})
    stop = tmp_path / "stop"
    digests = []
    with listening(Versions(run), max_batch=4) as client:
        words = [sys.executable, "-c", ASKING, str(client.port), body, str(stop)]
        asking = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            told = [pool.submit(one.communicate) for one in asking]
            try:
                digests.append(client("GET", "/catalogue")[1]["digest"])
                for turn in range(reloads):
                    time.sleep(0.2)
                    path = "/catalogue/rollback" if turn % 2 else "/catalogue/reload"
                    status, answer = client("POST", path, {"name": f"other-{reloads}"})
                    assert status == 200, answer
                    digests.append(answer["digest"])
                time.sleep(0.2)
            finally:
                stop.touch()
            lines = [line for one in told for line in one.result()[0].splitlines()]
        metrics = client("GET", "/metrics")[1]
    first, second = digests[:2]
    assert first != second and digests == [(first, second)[turn % 2] for turn in range(reloads + 1)]
    lists_of = {first: set(), second: set()}
    for line in lines:
        status, _, content = line.partition(" ")
        assert status == "200", line
        answer = json.loads(content)
        shown = json.dumps([ids_of(listed) for listed in answer["lists"]])
        lists_of[answer["catalogue"]["digest"]].add(shown)
    assert [len(found) for found in lists_of.values()] == [1, 1]
    assert lists_of[first] != lists_of[second]
    items = 32 if reloads % 2 else 24
    assert f"minionerec_catalogue_items {items}.0" in metrics


def test_a_reload_keeps_the_model_and_a_refused_one_changes_nothing(run):
    versions = Versions(run)
    before = versions.current
    with listening(versions) as client:
        assert client("POST", "/catalogue/rollback")[1] == {
            "error": "there is no version before this one"
        }
        status, answer = client("POST", "/catalogue/reload", {"name": "../secret"})
        assert (status, answer["error"]) == (
            409,
            "name: got '../secret', expected a plain folder name",
        )
        status, answer = client("POST", "/catalogue/reload", {"name": "nowhere"})
        assert status == 409 and "nowhere: is no run with data and sids" in answer["error"]
        assert versions.current is before
        assert client("POST", "/catalogue/reload", {})[1]["version"] == 2
    assert versions.current.recommender.policy.model is before.recommender.policy.model
    assert versions.current.digest == before.digest


def test_a_key_is_asked_for_where_one_is_set(versions):
    with listening(versions, api_key="s3cret") as client:
        body = {"histories": [["i1"]]}
        assert client("POST", "/recommend", body) == (
            401,
            {"error": "the header X-API-Key is missing or wrong"},
        )
        for path in ("/catalogue/reload", "/catalogue/rollback"):
            assert client("POST", path, {})[0] == 401
        assert client("GET", "/catalogue")[0] == 401 and client("GET", "/health")[0] == 200
        assert client("POST", "/recommend", body, {"X-API-Key": "s3cret"})[0] == 200


class Slow(Versions):
    """A search that waits until it may go on."""

    def __init__(self, run):
        super().__init__(run)
        self.go_on = threading.Event()
        real, waiting = self.current, self.go_on

        class Waits(Served):
            def search(self, questions):
                if len(questions[0].history) > 1:
                    waiting.wait(20)
                return super().search(questions)

        self.current = Waits(real.version, real.recommender)


def test_what_takes_too_long_or_too_much_is_turned_away_and_the_rest_goes_on(run):
    versions = Slow(run)
    with listening(versions, timeout_s=0.3, max_waiting=4, max_batch=1) as client:
        slow = {"histories": [["i1", "i2"]]}
        assert client("POST", "/recommend", slow) == (
            503,
            {"error": "no answer in time; try again later"},
        )
        many = {"histories": [["i1"]] * 5}
        assert client("POST", "/recommend", many) == (
            503,
            {"error": "too many requests wait; try again later"},
        )
        versions.go_on.set()
        assert client("POST", "/recommend", slow)[0] == 200
        metrics = client("GET", "/metrics")[1]
    assert 'minionerec_errors_total{reason="timeout"} 1.0' in metrics
    assert 'minionerec_errors_total{reason="full"} 1.0' in metrics
    assert (
        "minionerec_batch_size_count" in metrics and "minionerec_request_seconds_bucket" in metrics
    )


def test_a_search_that_fails_is_one_line_and_the_next_one_is_answered(run, caplog):
    """As with weights that are NaN: a fault of the server, whatever was asked."""
    versions = Versions(run)
    real = versions.current

    class Fails(Served):
        def search(self, questions):
            if len(questions[0].history) > 1:
                raise UserError("the model's scores are not numbers")
            return super().search(questions)

    versions.current = Fails(real.version, real.recommender)
    with listening(versions) as client:
        status, answer = client("POST", "/recommend", {"histories": [["i1", "i2"]]})
        assert (status, answer) == (500, {"error": "the search failed; the server's log says why"})
        assert client("POST", "/recommend", {"histories": [["i1"]]})[0] == 200
        assert 'reason="search"} 1.0' in client("GET", "/metrics")[1]
    assert "the model's scores are not numbers" in caplog.text


def test_the_page_about_the_interface_describes_every_path(client):
    paths = client("GET", "/openapi.json")[1]["paths"]
    assert set(paths) == {
        "/recommend", "/catalogue", "/catalogue/reload", "/catalogue/rollback", "/health", "/ready", "/metrics",
    }  # fmt: skip
    schema = paths["/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "where" in schema["properties"] and paths["/recommend"]["post"]["summary"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ({}, "--run is missing: runs/<name>, or the folder of one of its checkpoints"),
        ({"run": "x", "prot": "1"}, "command line: unknown flag --prot; did you mean 'port'?"),
        ({"run": "x", "config": "c"}, "command line: unknown flag --config; a run says itself how it was made: write --run runs/<name>"),
        ({"run": "x", "port": "high"}, "--port: got 'high': Input should be a valid integer, unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_a_mistaken_flag_is_one_line(flags, message):
    with pytest.raises(UserError) as error:
        read_flags(flags)
    assert str(error.value) == message


def test_the_command_serves_and_ends_with_what_it_has_taken_answered(run, root, tmp_path):
    """A signal while a request is on its way: it is answered, then the process ends."""
    (tmp_path / "key").write_text("abc\n")
    words = [
        sys.executable,
        root / "serve.py",
        "--run",
        run,
        "--port",
        "0",
        "--max_wait_ms",
        "1500",
    ]
    server = subprocess.Popen(
        [*map(str, words), "--api_key_file", str(tmp_path / "key")],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "24 items" in server.stdout.readline()
        address = server.stdout.readline().split(",")[0]
        client = Client(int(address.rpartition(":")[2]))
        for _ in range(100):
            try:
                if client("GET", "/ready")[0] == 200:
                    break
            except OSError:
                del client.kept.connection
                time.sleep(0.1)
        with ThreadPoolExecutor(1) as pool:
            body = {"histories": [["i1"]]}
            answer = pool.submit(client, "POST", "/recommend", body, {"X-API-Key": "abc"})
            time.sleep(0.5)  # it waits for company, for a second more
            server.send_signal(signal.SIGTERM)
            assert answer.result()[0] == 200
        server.wait(20)
        assert server.stderr.read() == ""
    finally:
        server.kill()
