"""Every tensor is made on, or moved to, the device of what it meets: a first GPU run need not tell.

The GPU is pretended (``tests/pretend.py``): its tensors refuse to meet tensors of the CPU, and are
computed there all the same, so that results must be those of the CPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from transformers import TrainingArguments

from minionerec.catalogue.masks import MaskBuilder
from minionerec.catalogue.rows import Label, Row
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import BaselineSettings, RLSettings
from minionerec.model import beam_search
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import ReplayDecoder, TreeDecoder
from minionerec.rankers import sequential, tiger
from minionerec.rankers.networks import NETWORKS
from minionerec.training import rollouts
from minionerec.training.collate import collate_sft
from minionerec.training.likelihood import sft_logp
from minionerec_trainer import GRPOTrainer
from tests.pretend import GPU, MixedDevices, OnGpu, moved, pretended_gpu
from tests.worlds import random_catalogue, tiny_model

LEVELS = [list(range(10, 15)), list(range(15, 20)), list(range(20, 25))]
SIDS = random_catalogue(2, 60, 3, 5)
SHARED = random_catalogue(3, 40, 3, 5, shared=0.3)
BEGINNING = list(range(1, 9)) * 3  # long enough for a forward of its own
PROMPTS = [[*BEGINNING, 1, 2, 3], [*BEGINNING, 1, 2, 4, 5], [*BEGINNING, 6]]


def words(sid: tuple[int, ...]) -> list[int]:
    return [LEVELS[level][code] for level, code in enumerate(sid)]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is not there; its generators of noise are those of the CPU."""

    class Generator(torch.Generator):
        def __new__(cls, device="cpu"):
            return super().__new__(cls)

    monkeypatch.setattr(rollouts.torch, "Generator", Generator)
    with pretended_gpu():
        yield GPU


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu):
    here, there = torch.ones(3), torch.ones(3, device=gpu)
    for mistake in (lambda: here + there, lambda: there.gather(0, torch.tensor([0]))):
        with pytest.raises(MixedDevices):
            mistake()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there + 1).cpu().tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 1])].device == gpu  # an index may lie on the CPU
    assert (there * torch.tensor(3.0)).tolist() == [3, 3, 3]  # as may a number
    there[:2] = here[:2] * 5
    assert there.tolist() == [5, 5, 1] and isinstance(here.to(gpu), OnGpu)


@pytest.mark.parametrize(
    "decoder, normalize, options",
    [
        (TreeDecoder, "vocab", {"score_eos": 1}),
        (TreeDecoder, "trie", {"excluded": True}),
        (TreeDecoder, "vocab", {"masks": True, "excluded": True}),
        (ReplayDecoder, "vocab", {}),
        (ReplayDecoder, "trie", {"masks": True}),
    ],
)
def test_decoding_gives_the_lists_of_the_cpu(gpu, decoder, normalize, options):
    def search(model, trie):
        made = decoder(model)
        with torch.inference_mode():
            made.read_beginning(PROMPTS)
        settings = dict(options)
        if "excluded" in options:
            settings["excluded"] = [[0, 1], [], [5]]
        if "masks" in options:
            allowed = MaskBuilder(trie).build(np.arange(60) % 3 > 0)
            settings["masks"] = [allowed, None, allowed]
        return constrained_beam_search(made, PROMPTS, trie, 20, normalize=normalize, **settings)

    expected = search(tiny_model("qwen2", 30), SidTrie(SIDS, LEVELS))
    found = search(moved(tiny_model("qwen2", 30)), SidTrie(SIDS, LEVELS).to(gpu))
    assert found.leaves.device == gpu
    assert torch.equal(found.leaves.cpu(), expected.leaves)
    assert torch.allclose(found.scores.cpu(), expected.scores, atol=1e-5)


def test_whole_batches_are_searched_as_on_the_cpu(gpu):
    def search(model, trie):
        batches = [[0, 2], [1]]
        excluded = {0: [3], 1: [], 2: [1, 4]}
        found = beam_search.search_batches(model, PROMPTS, trie, 5, batches, excluded=excluded)
        return [leaves for leaves, _ in found]

    expected = search(tiny_model("qwen2", 30), SidTrie(SHARED, LEVELS))
    found = search(moved(tiny_model("qwen2", 30)), SidTrie(SHARED, LEVELS).to(gpu))
    assert all(map(np.array_equal, found, expected))


def sft_rows() -> list[Row]:
    """SIDs with and without soft labels, and a title."""
    eos = [0]
    rows = []
    for number, prompt in enumerate(PROMPTS):
        rows.append(Row("sid_to_sid", "u", prompt, words(SIDS[number]) + eos, number))
    labels = (Label(3, words(SIDS[3]) + eos, 1.0, 0.0), Label(4, words(SIDS[4]) + eos, 0.0, 1.0))
    rows.append(Row("sid_to_sid", "u", [1, 2], words(SIDS[3]) + eos, 3, (1,), labels))
    rows.append(Row("sid_to_title", "", [9, 2], [4, 5, 6, 0], 1))
    return rows


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("with_trie", [True, False])
def test_sft_has_the_loss_and_gradients_of_the_cpu(gpu, share, with_trie):
    trie = SidTrie(SIDS, LEVELS)
    paths = [trie.item_path(item) for item in range(len(SIDS))]
    batch = collate_sft(sft_rows(), share, trie if with_trie else None, paths)

    def gradient(model, inputs):
        loss = -sft_logp(model.train(), inputs, teacher_weight=0.3)
        loss.backward()
        return loss.item(), model.get_input_embeddings().weight.grad

    expected, slope = gradient(tiny_model("qwen2", 30), batch)
    loss, on_gpu = gradient(moved(tiny_model("qwen2", 30)), send_to_device(batch, gpu))
    assert loss == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(on_gpu.cpu(), slope, atol=1e-4)


@pytest.mark.parametrize(
    "rollout, normalize, kl, more",
    [
        ("beam", "vocab", "k3", {}),
        ("gumbel", "trie", "exact", {"sft_weight": 0.1, "kl_on_flat_groups": True}),
        ("sample", "trie", "k3", {"num_iterations": 2}),
    ],
)
def test_rl_has_the_rollouts_loss_and_gradients_of_the_cpu(
    gpu, tmp_path, monkeypatch, rollout, normalize, kl, more
):
    settings = RLSettings(num_generations=6, beta=0.1, rollout=rollout, kl=kl, **more)
    rows = [Row("sid_to_sid", "u", prompt, [], item) for item, prompt in enumerate(PROMPTS)]

    def reward(items, targets, alive, histories):
        own = torch.arange(len(SIDS), device=items.device)[items.clamp(min=0)]
        return {
            "rule": (items == targets[:, None]).float(),
            "noise": torch.where(alive, own % 7 / 7.0, 0.0),
        }

    def step(device):
        model = tiny_model("qwen2", 30)
        reference = tiny_model("qwen2", 30, seed=1).requires_grad_(False)
        if device == gpu:
            moved(model)
            moved(reference)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=1, disable_tqdm=True
        )
        assert arguments.device.type == "cpu"  # asked for once, the Trainer knows its processes
        with monkeypatch.context() as patched:
            patched.setattr(type(arguments), "device", device)
            patched.setattr(type(arguments), "place_model_on_device", False)
            trainer = GRPOTrainer(
                model,
                arguments,
                rows,
                None,
                None,
                lambda _: {},
                trie=SidTrie(SIDS, LEVELS),
                settings=settings,
                normalize=normalize,
                reward=reward,
                ref_model=reference,
            )
        rolled = trainer.roll_out(rows)
        loss, metrics = trainer.loss_of(model.train(), rolled, range(len(rows)))
        loss.backward()
        return rolled, loss.item(), model.get_input_embeddings().weight.grad, metrics

    rolled, expected, slope, _ = step(torch.device("cpu"))
    again, loss, on_gpu, _ = step(gpu)
    assert torch.equal(again.nodes.cpu(), rolled.nodes)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(on_gpu.cpu(), slope, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_sequential_networks_train_and_score_as_on_the_cpu(gpu, kind):
    def trained(device):
        torch.manual_seed(0)
        model = NETWORKS[kind](12, 5, 8, 1, 2, 0.0)
        if device == gpu:
            moved(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = sequential.train_step(model, optimizer, [[1, 2, 3], [4, 5]])
        return loss, sequential.score(model, [[1, 2], [3]]).cpu()

    expected, scores = trained(torch.device("cpu"))
    loss, found = trained(gpu)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(found, scores, atol=1e-5)


def test_tiger_trains_as_on_the_cpu(gpu, monkeypatch):
    sids = SidTable([str(item) for item in range(20)], random_catalogue(2, 20, 2, 6), [6, 6], "")
    vocabulary = tiger.Vocabulary(sids)
    settings = BaselineSettings(tiger_hidden_size=32, tiger_layers=1)
    losses = []
    for device in (torch.device("cpu"), gpu):
        torch.manual_seed(0)
        model = tiger.new_model(vocabulary, settings, 0.0)
        if device == gpu:
            moved(model)
            # The library looks at the C++ side, which says "meta"
            monkeypatch.setattr(type(model), "device", gpu)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append(tiger.train_step(model, optimizer, vocabulary, [[1, 2, 3], [4, 5]]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
