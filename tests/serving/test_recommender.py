"""``Recommender``: a folder is enough, lists are evaluation's, filters keep k items, and it
explains itself.
"""

import ast
import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import evaluate
from minionerec import Recommender
from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import UserError
from minionerec.experiment.commit import committed
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import EvaluateSettings
from minionerec.experiment.stages import evaluation_path, fusion_path, settings_of, stage_path
from minionerec.model.policy import Policy
from minionerec.serving.item_filters import ItemFilters
from tests.worlds import tiny_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a random model under the name of sft, evaluated, with a fusion beside it."""
    experiment = tiny_run(tmp_path_factory.mktemp("served"))
    catalogue = Catalogue.open(experiment)
    policy = Policy.create(catalogue)
    policy.model.get_output_embeddings().weight.data.normal_(std=0.5)
    path = stage_path(experiment, "sft")
    with committed(path, "sft", settings_of(experiment, "sft"), catalogue.parents) as staging:
        policy.save(policy.model, staging)
    settings = EvaluateSettings(checkpoint="sft", num_beams=12, bootstrap_samples=20)
    experiment = experiment.changed({"evaluate": settings})
    evaluate.evaluate(experiment, evaluation_path(experiment))
    return experiment


@pytest.fixture(scope="module")
def recommender(made):
    return Recommender.load(stage_path(made, "sft").parent)


def predictions(path):
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


def test_rows(made):
    """Histories of the test split, whole, in the order of the predictions."""
    table = pd.read_parquet(stage_path(made, "data") / "interactions.parquet")
    before = table[table["split"] != "test"].groupby("user_id")["item_id"].agg(list)
    return [before[row["user_id"]] for row in predictions(evaluation_path(made))]


test_rows.__test__ = False


def test_a_folder_is_enough_and_the_lists_are_those_of_the_evaluation(made, recommender):
    rows = predictions(evaluation_path(made))
    lists = recommender.recommend(test_rows(made), k=12, explain=False)
    for row, found in zip(rows, lists, strict=True):
        assert [item.item_id for item in found] == row["item_ids"]
        assert [round(item.score, 5) for item in found] == row["scores"]
        assert [item.rank for item in found] == list(range(1, 13))
    again = Recommender.load(stage_path(made, "sft"))
    first = again.recommend(test_rows(made)[:3], k=4, explain=False)
    assert [[item.item_id for item in found] for found in first] == [
        row["item_ids"][:4] for row in rows[:3]
    ]


def test_a_fusion_that_the_run_was_evaluated_with_is_what_is_recommended(made, tmp_path):
    moved = tiny_run(tmp_path)
    path = stage_path(moved, "sft")
    policy = Policy.load("sft", Catalogue.open(made))
    with committed(
        path, "sft", settings_of(moved, "sft"), Catalogue.open(moved).parents
    ) as staging:
        policy.save(policy.model, staging)
    fusion = {"model": 0.5, "markov": 0.5}
    changes = {"fusion": fusion, "exclude_history": True}
    moved = moved.changed({"evaluate": made.evaluate.changed(changes)})
    evaluate.rank_and_fuse(moved, evaluation_path(moved))
    recommender = Recommender.load(path.parent)
    lists = recommender.recommend(test_rows(made), k=12, explain=False)
    for row, found in zip(predictions(fusion_path(moved)), lists, strict=True):
        assert [item.item_id for item in found] == row["item_ids"][:12]
        assert [round(item.score, 6) for item in found] == row["scores"][:12]
    allowed = [f"i{n}" for n in range(4, 11)]
    found = recommender.recommend([["i4", "i9"]], k=5, allow=allowed)[0]
    assert len(found) == 5
    assert {item.item_id for item in found} == set(allowed) - {"i4", "i9"}


def test_filters_leave_k_items_wherever_there_are_k(made):
    prices = pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(20)],
            "price": [float(n) for n in range(19)] + [float("nan")],
            "in_stock": [n % 2 == 0 for n in range(20)],
        }
    )
    recommender = Recommender.load(stage_path(made, "sft").parent, attributes=prices)
    everything = [item.item_id for item in recommender.recommend([["i1"]], k=24)[0]]
    assert len(everything) == 24

    def found(**filters):
        lists = recommender.recommend([["i1"]], k=24, explain=False, **filters)
        return [item.item_id for item in lists[0]]

    def kept(good):
        return [item_id for item_id in everything if good(int(item_id[1:]))]

    assert found(where={"price": (3, 6)}) == kept(lambda n: 3 <= n <= 6)
    assert found(where={"price": (None, 2)}) == kept(lambda n: n <= 2)
    assert found(where={"price": [17, None]}) == kept(lambda n: n in (17, 18))  # i19 has no price
    assert found(where={"in_stock": [True], "price": (0, 9)}) == kept(
        lambda n: n in (0, 2, 4, 6, 8)
    )
    assert found(where={"title": ["thing 2 of kind 1"]}) == ["i8"]
    assert found(allow=["i3", "i5", "i7"], deny=["i5"]) == kept(lambda n: n in (3, 7))
    assert found(deny=["i3"], exclude_history=True) == kept(lambda n: n not in (1, 3))
    assert found(allow=[]) == []


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"histories": [["i1", "i99"]]}, "history: 1 of 2 ids are not in the catalogue: 'i99'; ids look like 'i0'"),
        ({"histories": [[]]}, "histories: a history is empty, expected at least one item id"),
        ({"histories": ["i1"]}, "histories: got the text 'i1' for a history, expected a list of ids for each user"),
        ({"k": 0}, "k: got 0, expected a whole number from 1"),
        ({"deny": ["x"]}, "deny: 1 of 1 ids are not in the catalogue: 'x'; ids look like 'i0'"),
        ({"where": {"color": ["red"]}}, "where.color: there is no such column; expected one of item_id, title, description, brand, categories"),
        ({"where": {"title": "thing 2 of kind 1"}}, "where.title: got 'thing 2 of kind 1', expected a list"),
        ({"where": {"title": ["thing 2 of kind"]}}, "where.title: no item has 'thing 2 of kind'; did you mean 'thing 2 of kind 3'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(recommender, asked, message):
    with pytest.raises(UserError) as error:
        recommender.recommend(**({"histories": [["i1"]]} | asked))
    assert str(error.value) == message


def test_an_explanation_names_the_codes_their_words_and_the_nearest_items(made, recommender):
    """``thing m of kind n`` has the codes (item % 8, item // 8); words differ by kind only by
    numbers.
    """
    found = recommender.recommend([["i1", "i2", "i1", "i3"]], k=1)[0][0]
    item = int(found.item_id[1:])
    assert found.title == f"thing {item % 6} of kind {item // 6}"
    assert found.explanation.codes == (item % 8, item // 8)
    assert [len(words) for words in found.explanation.words] == [2, 2]
    vectors = np.load(stage_path(made, "sids") / "embeddings.npy")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = {f"i{n}": unit[item] @ unit[n] for n in (1, 2, 3)}
    best = sorted(cosine, key=lambda item_id: -cosine[item_id])[:2]
    assert [item_id for item_id, _ in found.explanation.nearest] == best
    assert found.explanation.nearest[0][1] == pytest.approx(cosine[best[0]], abs=1e-3)


def test_the_words_of_a_prefix_are_those_that_set_its_titles_apart(made):
    """Two kinds of things under two first codes; "thing" is in every title and says nothing."""
    from minionerec.serving.explanations import Explainer

    catalogue = Catalogue.open(made)
    items = catalogue.items.assign(
        title=["thing hammer steel" if n % 8 == 1 else "thing paper" for n in range(24)]
    )
    samples = dataclasses.replace(catalogue.samples, items=items)
    explainer = Explainer(dataclasses.replace(catalogue, samples=samples))
    assert explainer.explain(9, [1]).words[0] == ("hammer", "steel", "thing")
    assert explainer.explain(8, [1]).words[0] == ("paper", "thing")


def test_an_extended_run_is_served_by_the_model_of_the_run_that_it_extends(made, tmp_path):
    run = stage_path(made, "sft").parent
    extended = made.changed({"name": "longer"})
    for stage in ("data", "sids"):
        source = stage_path(made, stage)
        parents = [opened(source)]
        with committed(
            stage_path(extended, stage), stage, settings_of(extended, stage), parents
        ) as staging:
            for file in source.iterdir():
                if file.name != "MANIFEST.json":
                    (staging / file.name).write_bytes(file.read_bytes())
    old, new = (Recommender.load(folder) for folder in (run, run.parent / "longer"))
    assert new.policy.checkpoint.path == run / "sft"
    assert new.catalogue.data.path == run.parent / "longer/data"
    first, second = (one.recommend([["i1"]], explain=False) for one in (old, new))
    assert first == second


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match="is no run with data and sids .*; expected runs/<name>, or the folder of one of its",
    ):
        Recommender.load(tmp_path)
    tiny_run(tmp_path)
    with pytest.raises(UserError, match="tiny: holds neither rl nor sft; run `bash sft.sh`"):
        Recommender.load(tmp_path / "tiny")


def test_importing_the_package_does_not_wait_for_torch():
    program = (
        "import minionerec, sys; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(ImportError):
        from minionerec import Recommenders  # noqa: F401


def test_the_cells_of_the_first_notebook_run_from_top_to_bottom(made, root, tmp_path, monkeypatch):
    """In a folder that has runs/quickstart; what a cell ends with is what a reader sees below it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/quickstart").symlink_to(stage_path(made, "sft").parent)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((root / "examples/first_steps.ipynb").read_text())
    names, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            *before, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(before, []), "cell", "exec"), names)  # noqa: S102
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))  # noqa: S307
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)  # noqa: S102
    items, explanation, cheap, table = shown
    assert len(items) == 3 and explanation.codes and table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert len(cheap) == 5 and set(cheap) <= {f"i{n}" for n in range(3, 10)}


def test_a_few_ids_are_found_without_going_through_the_catalogue():
    """A third of a second for each request at a million items, when an index of texts was asked."""
    items = pd.DataFrame({"item_id": [f"item{number}" for number in range(300_000)]})
    filters = ItemFilters(items)
    taken = []
    for _ in range(5):
        start = time.process_time()
        assert filters.positions("history", ["item7", "item299999"]).tolist() == [7, 299_999]
        taken.append(time.process_time() - start)
    assert min(taken) < 0.005


def test_memory_that_is_freed_is_kept_for_the_next_forward():
    """Blocks of a megabyte, made and freed again and again: no page is cleared twice."""
    script = (
        "import resource, sys; import numpy as np\n"
        "from minionerec.experiment.allocator import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "for turn in range(300):\n"
        "    blocks = [np.ones(2**18) for _ in range(4)]\n"
        "    if turn == 20: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    pages = 280 * 4 * 2**21 / 4096
    assert sys.platform != "linux" or int(done.stdout) < pages / 100
