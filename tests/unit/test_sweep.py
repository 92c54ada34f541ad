"""The grammar of a sweep, its samplers, and what they are told."""

import math

import numpy as np
import pytest
from tests.cli import loralab

from loralab import registry
from loralab.errors import ConfigError
from loralab.experiments.executors.local import LocalParams, shares
from loralab.experiments.jobs import Outcome
from loralab.experiments.space import grid, read_space
from loralab.experiments.sweep import Sweep, SweepConfig, named

LR = "training.learning_rate"
SMALL = ["training.max_steps=2", "data.max_rows={train: 32, validation: 8, test: 8}"]


def test_what_is_swept_is_told_from_what_is_fixed():
    space = read_space(
        ["training.max_steps=5", f"{LR}=1e-4,1e-3", "seed=range(3)", "peft=lora"]
    )
    assert [axis.key for axis in space.axes] == [LR, "training.seed"]
    assert space.fixed == ("training.max_steps=5", "peft=lora")
    assert grid(space)[:2] == [
        (f"{LR}=0.0001", "training.seed=0"),
        (f"{LR}=0.0001", "training.seed=1"),
    ]
    assert len(grid(space)) == 6


def test_lists_and_mappings_are_one_value_and_their_lists_several():
    space = read_space(
        ["peft.params.target_modules=[a,b]", "data.max_rows={train: 3},{train: 5}"]
    )
    assert space.fixed == ("peft.params.target_modules=[a,b]",)
    assert space.axes[0].values == ("{train:3}", "{train:5}")


def test_glob_takes_presets_of_a_group():
    (axis,) = read_space(["model=glob(*bert*,exclude=ro*)"]).axes
    assert "bert-base" in axis.values
    assert "roberta-base" not in axis.values


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["seed=range(0)"], "no value"),
        (["seed=1,1"], "twice"),
        (["seed=1,2", "training.seed=3"], "stands twice"),
        ([f"{LR}=interval(1e-3,1e-4)"], "no interval"),
        ([f"{LR}=tag(log,interval(0,1))"], "no interval"),
        (["training.max_steps=glob(*)"], "matches nothing"),
    ],
)
def test_a_wrong_axis_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        read_space(given)


def test_a_grid_refuses_an_interval_and_says_what_draws_it():
    with pytest.raises(ConfigError, match="--sampler random"):
        grid(read_space([f"{LR}=interval(1e-5,1e-3)"]))


def asked(sampler, most=100):
    found = []
    while (point := sampler.ask()) is not None and len(found) < most:
        found.append(point)
    return found


def test_random_draws_the_law_that_is_asked_for():
    space = read_space(
        [
            f"{LR}=tag(log,interval(1e-5,1e-1))",
            "peft.params.rank=tag(int,interval(2,9))",
        ]
    )
    make, params = named("sampler", "random", {"trials": 400, "seed": 3})
    points = asked(make(params, space), 1000)
    assert len(points) == len(set(points)) == 400
    rates = np.log10([float(point[0].partition("=")[2]) for point in points])
    ranks = [int(point[1].partition("=")[2]) for point in points]
    assert set(ranks) == set(range(2, 10))
    assert rates.min() >= -5 and rates.max() <= -1
    assert abs(rates.mean() + 3) < 4 * (4 / math.sqrt(12)) / math.sqrt(400)
    assert asked(make(params, space), 1000) == points


def test_random_ends_where_there_are_no_more_points():
    make, params = named("sampler", "random", {"trials": 50})
    assert len(asked(make(params, read_space(["seed=0,1,2"])))) == 3


def loss_of(point):
    rate = float(point[0].partition("=")[2])
    return (math.log10(rate) + 3) ** 2  # best at 1e-3


@pytest.mark.parametrize("killed_after", [None, 10])
def test_optuna_finds_the_best_region_also_when_it_is_stopped_between(killed_after):
    space = read_space([f"{LR}=tag(log,interval(1e-6,1))"])
    make, params = named("sampler", "optuna", {"trials": 30})
    sampler, told = make(params, space), []
    while (point := sampler.ask()) is not None:
        sampler.tell(point, loss_of(point))
        told.append(point)
        if len(told) == killed_after:
            sampler = make(params, space)
            for before in told:
                sampler.replay(before, loss_of(before))
    assert len(told) == len(set(told)) == 30
    late = np.median([loss_of(point) for point in told[15:]])
    assert late < 0.5 * 2.25  # half the median of points drawn evenly


def test_optuna_prunes_a_trial_that_is_far_behind():
    make, params = named("sampler", "optuna", {"trials": 20, "pruner": "median"})
    sampler = make(params, read_space([f"{LR}=tag(log,interval(1e-6,1))"]))
    for _ in range(6):
        point = sampler.ask()
        assert not sampler.judge(point, 1, 1.0)
        sampler.tell(point, 1.0)
    point = sampler.ask()
    assert sampler.judge(point, 1, 50.0)
    sampler.tell(point, None)


@pytest.mark.parametrize("name", registry.names("sampler"))
def test_every_sampler_hands_out_each_point_once_and_not_what_was_tried(name):
    space = read_space(["seed=range(4)", "peft.params.rank=4,8"])
    make, params = named("sampler", name, {})
    tried = ("training.seed=2", "peft.params.rank=8")
    sampler = make(params, space)
    sampler.replay(tried, 0.5)
    points = []
    while (point := sampler.ask()) is not None:
        sampler.tell(point, 0.1)
        points.append(point)
    assert len(points) == len(set(points)) <= 7
    assert tried not in points


def test_a_sampler_s_unknown_param_is_named():
    with pytest.raises(ConfigError, match="trials"):
        named("sampler", "grid", {"trials": 3})


def made(tmp_path, *overrides, **more):
    config = SweepConfig("sms-spam", (*SMALL, *overrides), **more)
    return Sweep(config, tmp_path)


def test_one_wrong_point_refuses_the_sweep_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="rank"):
        made(tmp_path, "peft.params.rank=4,8,-1")
    assert list(tmp_path.iterdir()) == []


def test_an_interval_of_whole_numbers_says_so_before_the_start(tmp_path):
    ranks, trials = "peft.params.rank=interval(2,9)", {"trials": 2}
    with pytest.raises(ConfigError, match=r"tag\(int,interval"):
        made(tmp_path, ranks, sampler="random", params=trials)
    whole = "peft.params.rank=tag(int,interval(2,9))"
    sweep = made(tmp_path, whole, sampler="random", params=trials)
    assert sweep.total == 2


def test_two_ways_to_write_a_point_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="are the same run"):
        made(tmp_path, "peft.params.rank=8,'8'")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_trial_stays_failed_until_a_retry(tmp_path):
    sweep = made(tmp_path, "seed=0,1")
    sweep.path.mkdir(parents=True)
    sweep.ended(sweep.next(), Outcome("failed", "out of memory"))
    assert sweep.next() is not None  # begun, and the process killed
    again = made(tmp_path, "seed=0,1")
    assert [trial.status for trial in again.trials] == ["failed", "running"]
    assert again.next().number == 1
    assert again.next() is None
    retried = Sweep(again.config, tmp_path, retry=True)
    assert {retried.next().number, retried.next().number} == {0, 1}


def test_another_grid_is_another_sweep(tmp_path):
    assert made(tmp_path, "seed=0,1").path != made(tmp_path, "seed=0,2").path


def test_a_metric_that_validation_does_not_measure_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="accuracy"):
        made(tmp_path, "seed=0,1", metric="acuracy")


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert shares(LocalParams()) == (2, 4)
    assert shares(LocalParams(workers=3)) == (3, 2)
    assert shares(LocalParams(workers=16)) == (16, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert shares(LocalParams()) == (2, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert shares(LocalParams()) == (2, 1)
    assert shares(LocalParams(threads=3)) == (2, 3)


@pytest.mark.parametrize(
    ("args", "option", "able"),
    [
        (["--trials", 2], "--trials", "--sampler optuna or --sampler random"),
        (["--sampler-seed", 2], "--sampler-seed", "--sampler optuna or"),
        (["--sampler", "random", "--pruner", "none"], "--pruner", "--sampler optuna"),
    ],
)
def test_an_option_of_another_sampler_is_refused_with_who_takes_it(args, option, able):
    said = loralab("sweep", "trec-6", f"{LR}=tag(log,interval(1e-4,1e-2))", *args).err
    assert f"takes no {option}" in said
    assert f"fix: {able}" in said
    assert ("grid tries every value" in said) == ("--sampler" not in args)
