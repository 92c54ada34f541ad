"""What a route is: a way of an adapter into a quantized base.

A route is a function from its params and a loaded adapter to a `Routed`, registered as
a ``route``. What it returns is stored by a format, read back, and measured:

    routed = take(adapter, "merge-then-quantize")
    check_format(routed, "nf4")
    stored = format.write(params, Source(routed.model, …), folder, tell)
    survival = survival_of(routed, rounded, values)      (`loralab.export.survival`)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from loralab import registry
from loralab.config.problems import config_errors
from loralab.errors import ExportError
from loralab.export.survival import Survival, Update, measure, warning, whole

if TYPE_CHECKING:
    from torch import Tensor

    from loralab.inference.load import LoadedAdapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Routed:
    """What is to be stored, and what it is compared with afterwards.

    Attributes:
        route: The route that was taken.
        model: The transformers model to be stored, on the CPU, trained head included:
            in float; or with `AffineLinear` modules, whose codes are stored as they
            are.
        names: The adapted matrices, by their paths in the model.
        weight: From a name to W (O × I, fp32), what the adapter is a difference to.
        update: From a name to ΔW.
        better: What to do where too little survives.
        formats: Storage formats that may follow; () is all.
        as_stored: Whether W itself is what is stored without the adapter, else it is
            W after the format's rounding.
        beside: The adapter's folder, that goes beside the stored base unmerged; None
            where it was merged.
        extra_bytes: Of the weights' file in `beside`.
        extra_products: Matrix products that a forward pass has more than the base.
        extra_multiplications: Those of one token, or patch.
    """

    route: str
    model: Any
    names: tuple[str, ...]
    weight: Callable[[str], Tensor]
    update: Callable[[str], Update]
    better: str
    formats: tuple[str, ...] = ()
    as_stored: bool = False
    beside: Path | None = None
    extra_bytes: int = 0
    extra_products: int = 0
    extra_multiplications: int = 0


def take(
    adapter: LoadedAdapter, route: str, params: Mapping[str, Any] | None = None
) -> Routed:
    """Take a route with a loaded adapter, which is left as it was.

    Args:
        adapter: A trained adapter on its base.
        route: A name of the registry's.
        params: Of the route.

    Raises:
        ConfigError: no such route, or a param that it does not have.
        AdapterError: its method cannot go this way; the reason is said.
        ExportError: this adapter cannot.
    """
    entry = registry.get("route", route)
    try:
        made = entry.schema.model_validate(dict(params or {}))
    except ValidationError as error:
        raise config_errors(error, params, route, entry.schema) from None
    routed: Routed = entry.target(made, adapter)
    return routed


def check_format(routed: Routed, name: str) -> None:
    """Refuse a storage format that may not follow the route.

    Raises:
        ExportError: it may not.
    """
    if routed.formats and name not in routed.formats:
        raise ExportError(
            f"{name} cannot hold what {routed.route} made",
            where="--to",
            why="its codes and scales would be made anew, and the adapter rounded away",
            fix=f"choose {' or '.join(routed.formats)}, or another --route",
        )


def survival_of(
    routed: Routed,
    rounded: Callable[[Tensor], Tensor],
    values: Iterable[tuple[str, Tensor]],
) -> Survival | None:
    """Return what was kept of the adapter, and warn where it is too little.

    Args:
        routed: What was stored.
        rounded: From a float matrix to the values that the format gives it.
        values: Each stored module and its values, read back; not looked at where the
            adapter is beside.

    Returns:
        None where no quantized matrix has an update.
    """
    if routed.beside is not None:
        return whole(routed.names, routed.weight, routed.update)
    found = measure(
        values,
        routed.names,
        routed.weight,
        routed.update,
        None if routed.as_stored else rounded,
    )
    if found and (text := warning(found, routed.route, routed.better)):
        logger.warning(text)
    return found
