from itertools import pairwise

import pytest
from matplotlib.text import Text

from loralab.reporting.figures import (
    RankHistory,
    rank_history,
    read_rank_history,
    save,
)

EVENTS = [
    {"event": "plan"},
    {"event": "ranks", "step": 1, "ranks": {"m.0.q": 3, "m.0.k": 3, "m.1.q": 3}},
    {"event": "ranks", "step": 4, "ranks": {"m.0.q": 2, "m.0.k": 0, "m.1.q": 3}},
    {"event": "log", "step": 9, "loss": 1.0},
]


def test_every_rank_is_where_and_when_it_was():
    history = read_rank_history(EVENTS)
    assert history.end == 9
    figure = rank_history(history)
    axes, bar = figure.axes
    (mesh,) = axes.collections
    assert mesh.get_array().tolist() == [[3, 2], [3, 0], [3, 3]]
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [1, 4, 10]
    assert corners[:, 0, 1].tolist() == [0, 1, 2, 3]
    assert axes.get_ylim() == (3, 0)  # the first module is at the top
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["0.q", "0.k", "1.q"]
    assert bar.get_ylabel() == "rank (triplets)"
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 3)


def test_hundreds_of_modules_keep_names_apart_and_on_the_page():
    ranks = {f"model.layers.{i}.self_attn.q_proj": [12, i % 13] for i in range(210)}
    figure = rank_history(RankHistory([1, 5], 9, ranks))
    figure.draw_without_rendering()
    assert figure.get_figheight() < 11
    labels = [t for t in figure.axes[0].get_yticklabels() if t.get_text()]
    boxes = [Text.get_window_extent(label) for label in labels]
    assert len(boxes) > 30
    assert min(box.x0 for box in boxes) >= 0
    ordered = sorted(boxes, key=lambda box: box.y0)
    for low, high in pairwise(ordered):
        assert high.y0 >= low.y1 - 2


def test_the_same_history_gives_the_same_bytes(tmp_path):
    history = read_rank_history(EVENTS)
    one, two = (save(rank_history(history), tmp_path / n, "f") for n in "ab")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("no rank to draw", lambda: read_rank_history(EVENTS[:1])),
        ("no rank to draw", lambda: rank_history(RankHistory([1], 2, {}))),
        ("differ in length", lambda: rank_history(RankHistory([1], 2, {"a": [1, 2]}))),
        ("must ascend", lambda: rank_history(RankHistory([2, 1], 3, {"a": [1, 2]}))),
        ("before its last step", lambda: rank_history(RankHistory([2], 1, {"a": [1]}))),
    ],
)
def test_what_cannot_be_drawn_is_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()
