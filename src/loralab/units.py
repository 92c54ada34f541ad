"""How sizes, counts, times and shares are written, wherever they are told."""

from __future__ import annotations


def size(count: float) -> str:
    """Return bytes in a unit that reads well (powers of ten)."""
    for unit, digits in (("B", 0), ("kB", 0), ("MB", 1)):
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def counted(count: int, word: str) -> str:
    """Return ``1 step`` or ``2,000 steps``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float, decimals: int | None = 1) -> str:
    """Return a share of 1 as ``12.3 %``; with all it has where `decimals` is None."""
    return f"{100 * share:{'g' if decimals is None else f'.{decimals}f'}} %"
