"""The commands that the README gives, run as a user runs them: shell scripts, shipped settings, a
small table of one's own.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec.experiment.config import read_experiment
from minionerec.experiment.stages import result_name

ROOT = Path(__file__).resolve().parents[2]
NOUNS = ["drill", "saw", "lamp", "vise", "clamp", "ladder"]
COLOURS = ["red", "blue", "green", "grey", "black", "white"]


def run(*words, cwd, code=0):
    """Run a command as a user would; returns what it printed."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RANK")
    } | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, (
        f"{words} -> {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Two tables of a small shop, in a path with a space, and a YAML for them."""
    folder = tmp_path_factory.mktemp("my shop")
    rng = random.Random(1)
    with open(folder / "items.csv", "w") as handle:
        handle.write("sku,name,description\n")
        handle.writelines(
            f"{n:03d},{COLOURS[n % 6]} {NOUNS[n // 6]},a {NOUNS[n // 6]} in {COLOURS[n % 6]}\n"
            for n in range(36)
        )
    with open(folder / "orders.csv", "w") as handle:
        handle.write("customer,sku,bought_at\n")
        for user in range(60):
            item = rng.randrange(36)
            for step in range(7):
                handle.write(f"c{user},{item:03d},{1_600_000_000 + user * 977 + step * 86_400}\n")
                item = (item + 6) % 36 if rng.random() < 0.8 else rng.randrange(36)
    (folder / "shop.yaml").write_text(f"""
output_dir: "{folder}/runs"
data:
  source: tables
  path: "{folder}"
  interactions: orders.csv
  items: items.csv
  columns: {{user_id: customer, item_id: sku, timestamp: bought_at, title: name}}
  split: leave_one_out
sids: {{codebook_sizes: [5, 5], collision: extra_level}}
model:
  template: compact
  normalize: trie
  text_vocab_size: 300
  config: {{model_type: qwen2, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
           intermediate_size: 32, max_position_embeddings: 256}}
sft: {{tasks: {{sid_to_sid: 1, title_to_sid: 1}}, epochs: 3, batch_size: 32, learning_rate: 1e-2, eval_rows: 30}}
rl: {{epochs: 0.2, batch_size: 16, num_generations: 4, evals: 1, eval_rows: 30, eval_beams: 10}}
evaluate: {{bootstrap_samples: 20}}
baselines: {{methods: [popularity, markov]}}
""")
    return folder


def test_the_five_stages_run_in_sequence_on_tables_of_ones_own(shop):
    """With SIDs of different lengths (``extra_level``), ids with leading zeros, and a path with a
    space.
    """
    config = ("--config", shop / "shop.yaml")
    assert "run `bash data/prepare.sh`" in run("bash", ROOT / "sft.sh", *config, cwd=shop, code=2)
    for script in ("data/prepare.sh", "rqvae/rqvae.sh", "baselines/run.sh", "sft.sh", "rl.sh"):
        run("bash", ROOT / script, *config, cwd=shop)
    for checkpoint in ("sft", "rl"):
        run("bash", ROOT / "evaluate.sh", *config, "--evaluate.checkpoint", checkpoint, cwd=shop)
    folder = shop / "runs" / "shop"
    sids = json.loads((folder / "sids" / "sids.json").read_text())["sids"]
    assert len({tuple(sid) for sid in sids.values()}) == 36 and {"000", "035"} <= set(sids)
    assert {len(sid) for sid in sids.values()} == {2, 3}
    for checkpoint in ("sft", "rl"):
        metrics = json.loads(
            (folder / "evaluate" / f"{checkpoint}-test" / "metrics.json").read_text()
        )
        rows = [
            json.loads(line)
            for line in (folder / "evaluate" / f"{checkpoint}-test" / "predictions.jsonl")
            .read_text()
            .splitlines()
        ]
        assert (
            metrics["invalid"] == metrics["duplicates"] == 0
            and metrics["num_users"] == len(rows) == 60
        )
        assert {
            "HR@1",
            "NDCG@50",
            "sid_level",
            "num_beams",
            "checkpoint",
            "split",
            "sids_sha256",
        } <= set(metrics)
        hits = sum(row["target_item_id"] in row["item_ids"][:10] for row in rows)
        assert metrics["HR@10"] == pytest.approx(hits / 60)
        assert metrics["cost"]["seconds"] > 0 and 0 < metrics["cost"]["train_seconds"] < 600
        assert all(
            len(row["item_ids"]) == len(set(row["item_ids"])) == len(row["scores"]) == 36
            for row in rows
        )
    run(
        "bash",
        ROOT / "evaluate.sh",
        *config,
        "--evaluate.split",
        "valid",
        cwd=shop,
    )
    lines = (folder / "evaluate" / "rl-valid" / "predictions.jsonl").read_text().splitlines()
    assert all(
        sorted(json.loads(line)["item_ids"]) == sorted(sids) for line in lines
    )  # short and long SIDs, all of them
    shown = run(sys.executable, "-m", "minionerec.summary", *config, cwd=ROOT)
    assert (
        all(name in shown for name in ("popularity", "markov", "SFT", "RL", "NDCG@10"))
        and f"page: {folder / 'report.html'}" in shown
    )
    assert (folder / "report.html").read_text(encoding="utf-8").count(
        '<details class="example"'
    ) == 20


def test_a_finished_stage_says_so_and_other_settings_are_refused(shop):
    config = ("--config", shop / "shop.yaml")
    assert "is there already" in run("bash", ROOT / "sft.sh", *config, cwd=shop)
    refused = run("bash", ROOT / "sft.sh", *config, "--sft.epochs", "4", cwd=shop, code=2)
    assert "sft.epochs: 3 -> 4" in refused and "Traceback" not in refused


def test_recommend_ranks_items_with_titles_and_excludes_history_on_request(shop):
    python = sys.executable
    shown = run(
        python,
        ROOT / "recommend.py",
        "--config",
        shop / "shop.yaml",
        "--history",
        "001,007",
        "--k",
        "5",
        cwd=shop,
    )
    assert len(re.findall(r"^ +\d+ +-\d+\.\d+ +\d{3}  \w+ \w+$", shown, re.M)) == 5
    without = run(
        python,
        ROOT / "recommend.py",
        "--config",
        shop / "shop.yaml",
        "--history",
        "001,007",
        "--k",
        "36",
        "--evaluate.exclude_history",
        "true",
        cwd=shop,
    )
    ranked = re.findall(r"^ +\d+ +-\d+\.\d+ +(\d{3}) ", without, re.M)
    assert len(ranked) == 34 and not {"001", "007"} & set(ranked)
    unknown = run(
        python,
        ROOT / "recommend.py",
        "--config",
        shop / "shop.yaml",
        "--history",
        "001,999x",
        cwd=shop,
        code=2,
    )
    assert "1 of 2 ids are not in" in unknown and "Traceback" not in unknown


NEW_ITEMS = {"900": "purple drill", "901": "purple saw", "902": "pink ladder"}


def test_an_old_model_ranks_items_that_came_later(shop):
    """SIDs of different lengths, new items under the file's own column names, the checkpoint of the
    shorter catalogue.
    """
    (shop / "new.csv").write_text(
        "sku,name,description\n"
        + "".join(f"{sku},{name},a thing\n" for sku, name in NEW_ITEMS.items())
    )
    config = ("--config", shop / "shop.yaml")
    said = run(
        sys.executable, ROOT / "rqvae/add_items.py", *config, "--items", shop / "new.csv", cwd=shop
    )
    assert "3 items added to 36; churn 0 (SIDs that moved), items that share a SID now: 0." in said
    longer = (*config, "--name", "shop-extended", "--evaluate.checkpoint", shop / "runs/shop/rl")
    run("bash", ROOT / "evaluate.sh", *longer, cwd=shop)
    own, other = shop / "runs/shop/evaluate/rl-test", result_name(str(shop / "runs/shop/rl"))
    later = shop / f"runs/shop-extended/evaluate/{other}-test"
    lines = (later / "predictions.jsonl").read_text().splitlines()
    assert all(
        len(json.loads(line)["item_ids"]) == len(set(json.loads(line)["item_ids"])) == 39
        for line in lines
    )
    before, after = (json.loads((path / "metrics.json").read_text()) for path in (own, later))
    assert (
        after["num_users"] == 60
        and after["invalid"] == 0
        and after["sids_sha256"] != before["sids_sha256"]
    )
    assert after["HR@10"] <= before["HR@10"]  # three more rivals and no target among them


def test_a_new_item_is_recommended_first_when_the_model_scores_it_high(shop):
    words = (
        "--config",
        shop / "shop.yaml",
        "--name",
        "shop-extended",
        "--history",
        "001,900",
        "--k",
        "3",
    )
    python = sys.executable
    shown = run(
        python,
        ROOT / "recommend.py",
        *words,
        "--evaluate.checkpoint",
        checkpoint_that_likes("902", shop),
        cwd=shop,
    )
    assert re.search(r"^ +1 +-\d+\.\d+ +902  pink ladder$", shown, re.M)


def checkpoint_that_likes(sku: str, shop: Path) -> Path:
    """The SFT checkpoint of the shorter catalogue after some steps towards one new item: same
    tokens, same ``sids.json``.
    """
    import torch

    from minionerec.catalogue import inputs
    from minionerec.catalogue.templates import load_template
    from minionerec.model import backbone

    folder = shop / "likes"
    if folder.exists():
        return folder
    shutil.copytree(shop / "runs/shop/sft", folder, ignore=shutil.ignore_patterns("MANIFEST.json"))
    experiment = read_experiment(shop / "shop.yaml", {"name": "shop-extended"})
    samples, sids = inputs.load_catalogue(
        experiment, *(shop / "runs/shop-extended" / stage for stage in ("data", "sids"))
    )
    model, tokenizer = backbone.load(folder, torch.float32)
    renderer = inputs.renderer(tokenizer, load_template(folder, "compact"), sids, samples, 256)
    target = sids.token_ids(tokenizer)[sids.item_ids.index(sku)]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        ids = torch.tensor(
            [[*renderer.prompt("sid_to_sid", (1, sids.item_ids.index("900"))), *target]]
        )
        loss = torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[0, -len(target) - 1 : -1], torch.tensor(target)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_experiment_file_is_valid(name):
    assert read_experiment(ROOT / "configs" / name).name == name.removesuffix(".yaml")
