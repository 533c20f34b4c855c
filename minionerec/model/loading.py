"""A causal language model from a folder or hub, or one line that says why there is none.

``transformers`` fills weights that a checkpoint lacks with random numbers, drops those that it does
not know, and says so in a log that nobody reads. Here both are refused: every weight of the model
must be in the checkpoint, and every weight of the checkpoint must be known.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from minionerec.errors import UserError
from minionerec.experiment.run import say

# What wrappers put before the names of weights: DDP, torch.compile, PEFT (which has two parts).
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
# Buffers that older versions of transformers saved: they are computed, not learned.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|position_ids|\.attn\.(masked_)?bias)$")
# Layers on top of an encoder that sentence embeddings do not use; many checkpoints come without it.
UNUSED_BY_ENCODERS = re.compile(r"(^|\.)pooler\.")
VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
FLOATS = ("F64", "F32", "F16", "BF16")
LFS_POINTER = b"version https://git-lfs"
MOST_LAYERS = 1000  # of any model there is, with a margin: more would be built for hours


def load_tokenizer(source: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    folder = Path(source)
    if folder.is_dir() and not trust_remote_code:
        names = {path.name for path in folder.iterdir()}
        if not names & set(VOCABULARY_FILES):
            raise UserError(
                f"model '{source}': its tokenizer is missing (none of "
                f"{', '.join(VOCABULARY_FILES[:4])}); copy the tokenizer's files into the folder"
            )
    with _one_line(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model '{source}': its tokenizer has no end-of-sequence token; "
            "set eos_token in tokenizer_config.json"
        )
    return tokenizer


def load_causal_lm(
    source: str | Path, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model with all its weights.

    Raises:
        UserError: it cannot be loaded, or weights are missing, unknown or of other sizes.
    """
    look_into(source)
    key_mapping = check_weights(AutoModelForCausalLM, source, trust_remote_code)
    with _one_line(source):
        return AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            key_mapping=key_mapping or None,
        )


def check_encoder(
    source: str | Path,
    model_class: type[AutoModel] | type[PreTrainedModel] = AutoModel,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Check that a text encoder's weights are all there and all known.

    No weight is read into memory.

    Args:
        source: folder or hub name of the transformer itself, which inside a sentence-transformers
            folder may be a folder of its own.
        model_class: what the encoder was loaded as, such as ``T5EncoderModel``.
        trust_remote_code: run the code that comes with it.

    Returns:
        ``key_mapping`` for ``from_pretrained`` (``model_kwargs`` of ``SentenceTransformer``); empty
        unless a wrapper's prefix must be stripped.

    Raises:
        UserError: weights are missing, unknown or of other sizes, or it cannot be loaded.
    """
    look_into(source)
    return check_weights(model_class, source, trust_remote_code, is_encoder=True)


def look_into(source: str | Path) -> None:
    """Look at a folder's files before anything is loaded; a hub name is left to the library.

    Raises:
        UserError: it holds no model but an adapter, a quantised model, Git LFS pointers, or a
            config with values that no model has.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    # A clone without Git LFS has text files of three lines in the place of weights and tokenizer
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with open(file, "rb") as handle:
                is_pointer = handle.read(len(LFS_POINTER)) == LFS_POINTER
            if is_pointer:
                raise UserError(
                    f"model '{source}': {file.name} is a Git LFS pointer, not the file itself; "
                    "run `git lfs pull` where it was cloned"
                )
    _look_at_weights(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"model '{source}': is an adapter without its model; merge it first "
                "(peft: merge_and_unload, then save_pretrained)"
            )
        return  # the library names what it looks for
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        quantised = config.get("quantization_config")
        layers = config.get("num_hidden_layers", 1)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"model '{source}': config.json is not a JSON object") from error
    # Reading them needs a package per method; new rows could not be added to packed integers anyway
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"model '{source}': is quantised ({method}); quantised weights can neither be trained "
            "nor get tokens added; use the model that it was made from"
        )
    if isinstance(layers, int) and not 1 <= layers <= MOST_LAYERS:
        raise UserError(
            f"model '{source}': config.json has num_hidden_layers {layers}, "
            f"expected 1 to {MOST_LAYERS}"
        )


def _look_at_weights(folder: Path) -> None:
    """Weights in one place, of floating-point numbers, with no adapter beside them.

    Raises:
        UserError: otherwise the library would choose one of two, take integers for weights that
            lost their scale, or add the adapter; each without a word.
    """
    both = ("model.safetensors", "model.safetensors.index.json")
    if all((folder / name).exists() for name in both):
        raise UserError(
            f"model '{folder}': holds its weights twice, as {both[0]} and in the parts of "
            f"{both[1]}; move one of them away"
        )
    if all((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"model '{folder}': holds an adapter beside the whole model; move adapter_config.json "
            "away, or merge it first (peft: merge_and_unload, then save_pretrained)"
        )
    for file in sorted(folder.glob("*.safetensors")):
        for name, dtype in _dtypes(file).items():
            if dtype not in FLOATS and not COMPUTED.search(name):
                raise UserError(
                    f"model '{folder}': {file.name}: {name} is stored as {dtype}, expected one of "
                    f"{', '.join(FLOATS)}; use the model that it was quantised from"
                )


def _dtypes(file: Path) -> dict[str, str]:
    """Name -> dtype of a file's weights; none is read. Empty where it is no such file."""
    try:
        with safe_open(file, "pt") as weights:
            return {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}  # the library says what is wrong with it


def check_weights(
    auto_class: Any,
    source: str | Path,
    trust_remote_code: bool = False,
    is_encoder: bool = False,
) -> dict[str, str]:
    """Compare names and sizes of a checkpoint's weights with those of its model; none is read.

    Args:
        auto_class: whose ``from_pretrained`` will load it.
        source: folder or hub name.
        trust_remote_code: run the code that comes with it.
        is_encoder: a pooler may be missing, and a head for another task may be there.

    Returns:
        ``key_mapping`` for ``from_pretrained``, which strips a wrapper's prefix; empty if there is
        none.

    Raises:
        UserError: weights are missing, unknown or of other sizes; some are listed.
    """
    # On the meta device a checkpoint of any size is compared within a second, and a config with a
    # vocabulary of 10^12 allocates nothing. One round per wrapper, as wrappers may be nested.
    key_mapping: dict[str, str] = {}
    for _ in range(len(WRAPPERS) + 1):
        model, report = _on_meta(auto_class, source, trust_remote_code, key_mapping)
        unknown = {name for name in report["unexpected_keys"] if not COMPUTED.search(name)}
        prefix = _common_wrapper(unknown)
        if prefix is None:
            break
        stripped = "".join(re.escape(part) for part in [*_stripped(key_mapping), prefix])
        key_mapping = {f"^{stripped}": ""}
    # Tied weights and buffers that are computed are not among the missing ones
    missing = set(report["missing_keys"])
    if is_encoder:
        missing = {name for name in missing if not UNUSED_BY_ENCODERS.search(name)}
        unknown = _inside_body(unknown, model)
    _refuse(source, missing, unknown, report["mismatched_keys"])
    if key_mapping:
        prefix = "".join(_stripped(key_mapping))
        say(f"model '{source}': the names of its weights begin with '{prefix}', which was stripped")
    return key_mapping


def _on_meta(
    auto_class: Any,
    source: str | Path,
    trust_remote_code: bool,
    key_mapping: dict[str, str],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model without memory for its weights, and what the library found about their names."""
    with _one_line(source), _silent():
        return auto_class.from_pretrained(
            source,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping=key_mapping or None,
        )


def _common_wrapper(unknown: Collection[str]) -> str | None:
    """The wrapper's prefix with which all unknown names begin."""
    for prefix in WRAPPERS:
        if unknown and all(name.startswith(prefix) for name in unknown):
            return prefix
    return None


def _stripped(key_mapping: dict[str, str]) -> list[str]:
    """The prefixes that a key mapping strips: they are written as regular expressions."""
    return [pattern.removeprefix("^").replace("\\", "") for pattern in key_mapping]


def _inside_body(unknown: Collection[str], model: PreTrainedModel) -> set[str]:
    """Those of the unknown weights that an encoder's body would hold, such as a layer too many.

    Others belong to a head for another task (masked tokens, classes), which an encoder does not
    use.
    """
    # embeddings, encoder, layers, ...: the first part of the names that the body itself has
    body = {name.partition(".")[0] for name in model.state_dict()}
    own_prefix = f"{model.base_model_prefix}."
    return {name for name in unknown if name.removeprefix(own_prefix).partition(".")[0] in body}


def _refuse(
    source: str | Path, missing: Collection[str], unknown: Collection[str], sizes: Collection[tuple]
) -> None:
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing ({_some(missing)})")
    if unknown:
        problems.append(f"{len(unknown)} weights are unknown to the model ({_some(unknown)})")
    if sizes:
        name, found, expected = sorted(sizes, key=lambda row: row[0])[0]
        problems.append(
            f"{len(sizes)} weights have another size than config.json says "
            f"({name}: {list(found)}, expected {list(expected)})"
        )
    if problems:
        raise UserError(
            f"model '{source}': {'; '.join(problems)}; use a checkpoint whose weights and "
            "config.json belong together"
        )


def _some(names: Collection[str]) -> str:
    """The first three names."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


@contextlib.contextmanager
def _one_line(source: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside ends with one line: a folder may hold anything.

    Raises:
        UserError: what the library found.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise  # no fault of the folder; whoever loads says what to lower
    except Exception as error:
        # Validation errors have a heading that ends with a colon; the reason is on the line below
        # it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
        expected = (
            "expected a hub name or a folder in hub format "
            "(config.json, model.safetensors, tokenizer.json)"
        )
        if "custom code" in reason:
            expected = "if you trust whoever wrote that code, set model.trust_remote_code: true"
        if isinstance(error, ImportError):
            expected = "install it, or remove the setting that asks for it from config.json"
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(
            f"model '{source}': cannot be loaded: {kind}{reason}; {expected}"
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Inside, ``transformers`` prints neither its report about weights nor a progress bar."""
    level = transformers_logging.get_verbosity()
    with_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if with_bars:
            transformers_logging.enable_progress_bar()
