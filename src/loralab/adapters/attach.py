"""`attach`: put an adapter on a base, and assert that it is what was configured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.adapters.abilities import is_native, require
from loralab.adapters.adalora import EPSILON
from loralab.adapters.allotment import Allotment, allot
from loralab.adapters.calibration import Batches
from loralab.adapters.files import Plain, load_weights
from loralab.adapters.initialise import initialise, plain_difference
from loralab.adapters.site import Site, site_of, wrap
from loralab.config import PEFTConfig
from loralab.errors import AdapterError
from loralab.merging.export.heads import Head
from loralab.models.architecture import kind_of, parameter_count, quantized_as
from loralab.models.loaded import LoadedModel
from loralab.models.quiet import quiet_libraries
from loralab.registry import Params


@dataclass(frozen=True)
class Attached:
    """A PEFT model, and the account of what is trained.

    Attributes:
        model: The PEFT model.
        trainable: Trained parameters.
        total: All parameters.
        modules: Pattern -> the modules it matched.
        scales: Effective scale of the update -> how many modules have it.
        record: What was decided and done before training: ``ranks``, ``init``.
        plain: Makes the plain LoRA that is saved, where the method trains another form.
    """

    model: Any
    trainable: int
    total: int
    modules: dict[str, list[str]]
    scales: dict[float, int]
    record: dict[str, Any] = field(default_factory=dict)
    plain: Plain | None = None

    @property
    def matched(self) -> dict[str, int]:
        """Pattern -> how many modules it matched."""
        return {pattern: len(names) for pattern, names in self.modules.items()}


def attach(
    loaded: LoadedModel, config: PEFTConfig, batches: Batches | None = None
) -> Attached:
    """Attach the configured adapter to a loaded base.

    Args:
        loaded: The base; its model is changed in place. Newly initialised modules (a
            task's head) are trained and saved in full.
        config: Method and params.
        batches: Training batches, for ranks and inits that look at them. On a base
            without weights neither is computed.

    Raises:
        AdapterError: a pattern matches nothing, the method cannot do what the base
            asks of it, or a new head would stay frozen.
    """
    entry = registry.get("PEFT method", config.name)
    params = entry.schema(**config.params)
    require(config, kind_of(loaded.facts), "peft.name")
    if stored := quantized_as(loaded.model):
        require(config, stored, "peft.name")
    site = site_of(loaded, params, entry.facts.get("over", "linear"))
    _check_keys(params, site)
    allotted = allot(site, params, batches)
    params = allotted.params if allotted else params
    model = entry.target(params, site)
    begun = None
    init = getattr(params, "init", "default")
    if init not in ("default", "gaussian") and not _is_empty(loaded):
        begun = initialise(model, init, loaded, batches)
    plain = entry.facts.get("plain")
    if begun and begun.taken:
        plain = partial(plain_difference, taken=begun.taken)
    record = _record(allotted, begun.record if begun else None)
    return account(model, site, record, plain)


def restore(
    loaded: LoadedModel, config: PEFTConfig, folder: Path, head: Head | None = None
) -> Any:
    """Put a trained adapter back on its base.

    A plain PEFT adapter is what its own folder says. A method that changes the base, or
    trains its tensors, is attached as for training, then given the stored tensors.

    Args:
        loaded: The base, as it was loaded for training.
        config: Method and params of the training.
        folder: The adapter's folder.
        head: Of a merged adapter, which is plain: replaces the head it has, if any.

    Returns:
        The adapted model.

    Raises:
        AdapterError: files are missing, broken, or of another adapter.
    """
    if head:
        model = _from_folder(loaded, folder, head.modules)
        load_weights(model, folder, lambda stored: {**stored, **head.tensors})
        return model
    entry = registry.get("PEFT method", config.name)
    params = entry.schema(**config.params)
    if not is_native(config):
        model = _from_folder(loaded, folder)
        load_weights(model, folder)
        return model
    if getattr(params, "ranks", None):  # they are known by now
        params = params.model_copy(update={"ranks": None, **_stored_ranks(folder)})
        config = config.model_copy(update={"params": params.model_dump(mode="json")})
    model = attach(loaded, config).model
    convert = entry.facts.get("from_plain")
    load_weights(model, folder, convert and convert(params))
    return model


def _stored_ranks(folder: Path) -> dict[str, Any]:
    stored = read_config(folder)
    return {key: stored[key] for key in ("rank_pattern", "alpha_pattern")}


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's ``adapter_config.json``.

    Raises:
        AdapterError: it is missing or broken.
    """
    try:
        text = (folder / "adapter_config.json").read_text(encoding="utf-8")
        return dict(json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(
            "adapter_config.json cannot be read", where=str(folder), why=str(error)
        ) from None


def _from_folder(
    loaded: LoadedModel, folder: Path, modules: Sequence[str] | None = None
) -> Any:
    """Attach what a PEFT adapter's own configuration says; weights are not read.

    Other `modules` than the configuration's may be those that are saved in full.
    """
    from peft import PeftConfig

    read_config(folder)
    try:
        with quiet_libraries():
            config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(
            "adapter_config.json is not PEFT's",
            where=str(folder),
            why=str(error).split("\n")[0],
        ) from None
    saved = config.modules_to_save if modules is None else modules
    return wrap(Site(loaded, {}, tuple(saved or ())), config)


def _is_empty(loaded: LoadedModel) -> bool:
    return bool(next(loaded.model.parameters()).is_meta)


def _record(allotted: Allotment | None, begun: dict[str, Any] | None) -> dict[str, Any]:
    found = {"ranks": allotted.record if allotted else None, "init": begun}
    return {name: value for name, value in found.items() if value}


def account(
    model: Any,
    site: Site,
    record: Mapping[str, Any] | None = None,
    plain: Plain | None = None,
) -> Attached:
    """Let trained tensors be fp32, check where the adapter went, and count.

    Raises:
        AdapterError: PEFT adapted other modules, or a new head is frozen.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        some = any(p.requires_grad for p in own)
        whole = some and all(p.ndim == 1 for p in own)  # a norm computes in one dtype
        for parameter in own:
            if whole or parameter.requires_grad:
                parameter.data = parameter.data.float()
    check_adapted(model, site)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Attached(
        model=model,
        trainable=sum(p.numel() for p in trained),
        total=parameter_count(model),
        modules=dict(site.matched),
        scales=effective_scales(model),
        record=dict(record or {}),
        plain=plain,
    )


def _check_keys(params: Params, site: Site) -> None:
    """Every key of a rank pattern must end a targeted module's path."""
    names = site.names
    for key in getattr(params, "rank_pattern", {}):
        try:
            pattern = re.compile(rf"(?:.*\.)?(?:{key})$")  # as PEFT matches it
        except re.error as error:
            raise AdapterError(
                f"{key!r} is no regular expression: {error}",
                where="peft.params.rank_pattern",
            ) from None
        if not any(pattern.match(name) for name in names):
            raise AdapterError(
                f"{key!r} is the end of no targeted module's path",
                where="peft.params.rank_pattern",
                fix=f"write for example {names[0]!r}",
            )


def effective_scales(model: Any) -> dict[float, int]:
    """Return how many adapted modules have which effective scale."""
    found: dict[float, int] = {}
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict):
            for adapter, value in scaling.items():
                scale = float(value)
                if hasattr(module, "ranknum"):  # AdaLoRA divides in its forward pass
                    scale /= module.r[adapter] + EPSILON
                scale = float(f"{scale:.6g}")  # alpha = scale · rank was rounded
                found[scale] = found.get(scale, 0) + 1
    return found


@contextmanager
def base_only(model: Any) -> Iterator[None]:
    """Let an adapted model be its base for a while, with the head it began with.

    PEFT's `disable_adapter` leaves a trained head in place where the adapter is a
    prompt.
    """
    from peft.utils.other import ModulesToSaveWrapper

    heads = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    with model.disable_adapter():
        for head in heads:
            head.enable_adapters(False)
        try:
            yield
        finally:
            for head in heads:
                head.enable_adapters(True)


def own_path(path: str) -> str:
    """Return a parameter's path in the base, from its path in an adapted model."""
    for prefix in ("base_model.model.", "base_model."):
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path


def check_adapted(model: Any, site: Site) -> None:
    """Assert that the adapter is on every matched module and that new heads train.

    Raises:
        AdapterError: PEFT adapted other modules, or a new head is frozen.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {
        own_path(name)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    wanted = set(site.names)
    if adapted != wanted and hasattr(model, "peft_config"):
        odd = sorted(adapted ^ wanted)
        raise AdapterError(
            f"PEFT adapted {len(adapted)} modules where {len(wanted)} were meant",
            where=odd[0],
            fix="write target_modules as full names",
        )
    for name in site.modules_to_save:
        live = [
            parameter
            for path, parameter in model.named_parameters()
            if own_path(path).startswith(f"{name}.") and "original_module" not in path
        ]
        if not live or not all(p.requires_grad for p in live):
            raise AdapterError(
                "newly initialised, yet frozen: it would stay random", where=name
            )
