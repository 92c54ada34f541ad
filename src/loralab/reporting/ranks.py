"""Ranks as a matrix: layers down, module types across."""

from __future__ import annotations

from collections.abc import Mapping

OUTSIDE = "outside"
"""The row of modules that are in no layer."""


def rank_matrix(
    ranks: Mapping[str, int],
) -> tuple[list[str], list[tuple[str, list[int | None]]]]:
    """Return ranks by layer and module type, for a table or a heat map.

    Args:
        ranks: Path of a module -> rank; rows and columns come in its order.

    Returns:
        Names of the columns, and for each layer its name with its ranks. A column is
        named by as little of the path's end as tells it from others. None: the layer
        has no such module. A layer is named by its number, with the stack before it
        where there are several (an encoder's, a decoder's).
    """
    places = {name: _place(name, numbers=False) for name in ranks}
    if len(set(places.values())) < len(ranks):  # the numbers tell modules apart
        places = {name: _place(name, numbers=True) for name in ranks}
    stacks = {stack: _side(stack) for stack, layer, _ in places.values() if layer}
    if len(set(stacks.values())) < len(stacks):
        stacks = {stack: stack for stack in stacks}
    kinds = list(dict.fromkeys(kind for *_, kind in places.values()))
    rows: dict[str, dict[str, int]] = {}
    for name, (stack, layer, kind) in places.items():
        row = f"{stacks[stack]} {layer}" if layer and len(stacks) > 1 else layer
        rows.setdefault(row or OUTSIDE, {})[kind] = ranks[name]
    return (
        [_short(kind, kinds) for kind in kinds],
        [(row, [own.get(kind) for kind in kinds]) for row, own in rows.items()],
    )


def _place(name: str, numbers: bool) -> tuple[str, str, str]:
    """Return the stack of layers, the layer's number and the path inside it.

    Args:
        name: Path of a module.
        numbers: Keep those inside a layer (T5's of its sublayers, of experts).
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if first is None:
        return "", "", name
    inside = [part for part in parts[first + 1 :] if numbers or not part.isdigit()]
    return ".".join(parts[:first]), parts[first], ".".join(inside)


def _side(stack: str) -> str:
    """Return the part of a stack's path that says which it is: encoder, decoder."""
    parts = stack.split(".")
    return next((p for p in parts if p in ("encoder", "decoder")), parts[-1])


def _short(kind: str, kinds: list[str]) -> str:
    """Return the shortest end of a path that no other path of `kinds` has."""
    parts = kind.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(other == end or other.endswith(f".{end}") for other in kinds) == 1:
            return end
    return kind
