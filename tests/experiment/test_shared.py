"""Arrays that one process of a machine makes and all map (minionerec/experiment/shared.py).

bash test.sh tests/experiment/test_shared.py

That whole stages take the same steps with them: tests/commands/test_distributed.py.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minionerec.experiment.shared import made_once

ROOT = Path(__file__).resolve().parents[2]
# The second call finds a disk without room
PROBE = """\
import ast
import os
import numpy as np
from minionerec.errors import one_line_errors
from minionerec.experiment.shared import made_once

def make():
    print("made by", os.environ["RANK"], flush=True)
    return [np.arange(3, dtype=np.int32), np.empty((0, 2)), np.full((2, 2), 7.5)]

def full(*_):
    raise OSError(28, "No space left on device")

with one_line_errors():
    found = made_once(make)
    facts = [array.tolist() for array in found], {type(array).__name__ for array in found}
    with open(f"said-{os.environ['RANK']}", "w") as file:
        file.write(repr((facts, found[0].flags.writeable)))
    np.save = full
    made_once(lambda: [np.zeros(2**18)])
"""


def test_the_first_process_makes_what_both_map_and_no_file_stays(tmp_path):
    """And a full disk is one line."""
    (tmp_path / "probe.py").write_text(PROBE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    settings = ROOT / "configs" / "accelerate" / "cpu_processes.yaml"
    options = ["--config_file", str(settings), "--num_processes", "2"]
    command = [sys.executable, "-P", "-m", "minionerec.experiment.accelerated", *options]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    environment = {**os.environ, **own, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANK", None)
    done = subprocess.run(
        [*command, str(tmp_path / "probe.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "made by 0\n"
    for rank in range(2):
        facts, is_writeable = ast.literal_eval((tmp_path / f"said-{rank}").read_text())
        assert facts == ([[0, 1, 2], [], [[7.5, 7.5], [7.5, 7.5]]], {"memmap"})
        assert not is_writeable
    assert not list(temporary.glob("minionerec-*"))
    folder, _, said = done.stderr.partition(": ")
    assert folder.startswith(f"{temporary}/minionerec-")
    assert said == (
        "No space left on device: 2 MiB that the processes of this machine share do not fit; "
        "set TMPDIR to a folder with room\n"
    )


def test_a_process_that_is_alone_keeps_what_it_made(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    array = np.arange(3)
    (found,) = made_once(lambda: [array])
    assert found is array


@pytest.mark.parametrize("texts", [["a steel drill", "a drill"], []])
def test_a_tokenizer_that_went_through_its_bytes_is_the_one_that_was_learnt(texts):
    """Ids of words it has seen and of words it has not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from minionerec.model.vocabulary import END_OF_TEXT, train_tokenizer

    expected = Tokenizer(models.BPE())
    expected.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    expected.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    expected.train_from_iterator(texts, trainer)
    found = train_tokenizer(iter(texts), 262)
    assert found.get_vocab() == expected.get_vocab()
    for text in ("a steel drill", "Grün \u00a0x <|endoftext|>", ""):
        assert found(text)["input_ids"] == expected.encode(text).ids
