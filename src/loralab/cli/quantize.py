"""`loralab quantize`: a run's adapter, or a base, into a storage format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loralab.cli.completion import named_like, run_or_experiment_like
from loralab.cli.json_output import Json, print_json
from loralab.cli.options import RunsDir
from loralab.units import percent, size

if TYPE_CHECKING:
    from loralab.config import ExperimentConfig, RouteConfig, StorageConfig
    from loralab.runs import Run

What = Annotated[
    str,
    typer.Argument(
        help="A run with an adapter; or an experiment, or a model, whose base alone "
        "is stored.",
        autocompletion=run_or_experiment_like,
    ),
]
Pairs = Annotated[
    list[str] | None,
    typer.Argument(help="key=value of the format; route.key=value of the route."),
]
To = Annotated[
    str,
    typer.Option(
        "--to",
        help="The storage format.",
        autocompletion=named_like("storage format"),
    ),
]
Route = Annotated[
    str | None,
    typer.Option(
        help="How the adapter gets in; by default what its method allows.",
        autocompletion=named_like("route"),
    ),
]
On = Annotated[
    str, typer.Option(help="Whose rows a model's certificate is measured on.")
]
Rows = Annotated[
    int, typer.Option(min=0, help="Test rows of the certificate; 0 makes none.")
]

FINER, LEAST = ("group", "block_size"), 16
"""Keys of formats whose smaller values store more of a weight, and their least."""
MERGING = ("merge-then-quantize", "merge-into-nf4")
"""Routes that round the adapter with its base."""


def quantize(
    what: What,
    to: To,
    pairs: Pairs = None,
    route: Route = None,
    experiment: On = "chatterbot",
    rows: Rows = 200,
    force: Annotated[
        bool, typer.Option("--force", help="Make it again; the old one is kept aside.")
    ] = False,
    json_output: Json = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Store a model in a format, tell what it kept of its adapter, and certify it.

    The same call finds its artefact instead of making it again. Ends with 1 if its
    certificate is not passed, and says what to try; the artefact stays.

    With --json an object: run, path, artefact (size, survival, route), parity (the
    certificate, or null), remedies (where it is not passed).

    Example: loralab quantize trec-6 --to onnx-int8
    """
    from loralab.cli import render
    from loralab.cli.progress import TrainingProgress
    from loralab.export.artefact import quantize as store

    storage, way = _asked(to, route, pairs or [])
    progress = TrainingProgress(stderr=json_output)
    try:
        run = store(
            _what(what, experiment, runs_dir),
            storage,
            way,
            runs_dir,
            force=force,
            rows=rows,
            on_event=progress,
        )
    finally:
        progress.close()
    if json_output:
        print_json(_told(run))
    else:
        for line in lines(run):
            render.console().print(line, soft_wrap=True)
    if remedies(run):
        raise typer.Exit(1)


def _asked(
    to: str, route: str | None, pairs: list[str]
) -> tuple[StorageConfig, RouteConfig | None]:
    """Return the format and the route, each with the params of the command line."""
    from loralab.config import RouteConfig, StorageConfig
    from loralab.config.named import named

    before = "route."
    mine = [pair for pair in pairs if not pair.startswith(before)]
    storage = named(StorageConfig, to, mine, option="--to")
    if route is None:
        return storage, None
    its = [pair.removeprefix(before) for pair in pairs if pair.startswith(before)]
    return storage, named(RouteConfig, route, its, option="--route", prefix=before)


def _what(text: str, experiment: str, runs_dir: Path) -> Run | ExperimentConfig:
    """Return the run, or the experiment, that a text names."""
    from loralab.config import compose
    from loralab.config.compose import presets
    from loralab.errors import RunError
    from loralab.runs import find_run

    if text in presets("experiment") or text.endswith((".yaml", ".yml")):
        return compose(text, [])
    try:
        return find_run(text, runs_dir)
    except RunError:
        path = Path(text).expanduser()
        alone = (path / "adapter_config.json").is_file()
        near = path.parent == runs_dir or path.parent.is_dir()  # runs/NAME, or a word
        typo = near and not path.exists()
        if alone or (typo and ":" not in text):  # no model either
            raise
    name = text.rpartition("/")[2].rpartition(":")[2]
    return compose(experiment, [f"model.path={text}", f"name={name}"])


def lines(run: Run) -> list[str]:
    """Return what was made: size, survival, certificate."""
    made = run.read()["artefact"]
    besides = "".join(f", and {name}" for name in made["besides"])
    count, told = made["bytes"]["measured"], made["bytes"]["predicted"]
    found = [
        f"stored   {made['storage']['name']}, {made['quantized']} of {made['linear']} "
        f"linear modules quantized{besides}; engine {made['engine']}",
        f"size     {size(count)} ({count:,} bytes; {told:,} predicted), "
        f"{percent(made['of_fp32'])} of fp32, {percent(made['of_fp16'])} of fp16",
    ]
    if survival := made["survival"]:
        worst = min(survival["layers"], key=lambda n: survival["layers"][n]["kept"])
        least = survival["layers"][worst]["kept"]
        found.append(
            f"adapter  {percent(survival['kept'])} kept by {made['route']} (least, "
            f"{percent(least)}, in {worst}); it is "
            f"{percent(survival['size'], 2)} of the weights"
        )
        if made["beside"]:
            found[-1] += f"; beside, {made['products']} products more a pass"
    found += _certificate(run)
    return [*found, f"run      {run.path}"]


def _told(run: Run) -> dict[str, Any]:
    made: dict[str, Any] = {"artefact": run.read()["artefact"], "parity": _parity(run)}
    made["remedies"] = remedies(run)
    return {"run": run.id, "path": run.path, **made}


def remedies(run: Run) -> list[str]:
    """Return what may pass where the certificate did not; empty where it did."""
    parity, content = _parity(run), run.read()
    if parity is None or parity["passed"]:
        return []
    made = content["artefact"]
    params, found = made["storage"]["params"], []
    for key in FINER:
        if isinstance(value := params.get(key), int) and value > LEAST:
            found.append(f"{key}={value // 2}")
    if made["route"] in MERGING and made["engine"] in ("torch", "onnx"):
        slots = " slots=true" if "slots" in params else ""
        found.append(f"--route side-path{slots}")
    if parity["rows"] < content["data"]["sizes"][parity["split"]]:
        found.append(f"--rows {2 * parity['rows']} --force")
    return [*found, "a format of more bits"]


def _parity(run: Run) -> dict[str, Any] | None:
    """Return the certificate; None if none was made."""
    file = run.path / "parity.json"
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _certificate(run: Run) -> list[str]:
    """Return the certificate in lines."""
    from loralab.cli import render

    content = _parity(run)
    if content is None:
        return ["parity   no certificate was made"]
    word = "passed" if content["passed"] else "NOT PASSED"
    found = [f"parity   {word}, against {content['predecessor']}"]
    rise = content["metrics"]["cross_entropy"]["difference"]
    found.append(
        f"         KL {content['kl']['value']:.2g} nats (at most "
        f"{content['kl']['high']:.2g}), top-1 agreement "
        f"{render.interval(content['top1'])}, cross-entropy "
        f"{render.interval(rise, sign=True)}, {content['rows']} "
        f"{content['split']} rows"
    )
    for check in content["checks"]:
        if not check["passed"]:
            way = "at most" if "at most" in check else "at least"
            found.append(
                f"         {check['name']}: {check['worst']:.3f}, and {way} "
                f"{check[way]:g} was asked for"
            )
            agrees = check["name"].startswith("top-1") and (
                content["top1"]["value"] >= check[way]
            )
            if agrees:
                found[-1] += f"; {content['rows']} rows are too few to show it"
    if tries := remedies(run):
        found.append(f"         try {', or '.join(tries)}")
    return found
