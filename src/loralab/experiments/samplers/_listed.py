"""A sampler whose points do not depend on what came before."""

from __future__ import annotations

from collections.abc import Iterable

from loralab.experiments.space import Point


class Listed:
    """Hands out a list of points, each once.

    Attributes:
        points: All of them.
    """

    def __init__(self, points: Iterable[Point]) -> None:
        self.points = list(dict.fromkeys(points))
        self._left = self.points[::-1]

    def ask(self) -> Point | None:
        """Return the next point, or None."""
        return self._left.pop() if self._left else None

    def replay(self, point: Point, value: float | None) -> None:
        """Do not hand out a point that was tried before."""
        if point in self._left:
            self._left.remove(point)

    def tell(self, point: Point, value: float | None) -> None:
        """Learn nothing."""

    def judge(self, point: Point, step: int, value: float) -> bool:
        """Let every trial run to its end."""
        return False
