"""The four stages: base, base quantized, LoRA, LoRA quantized; then all compared.

    1  save the base                     an artefact in a float format
    2  quantize the base                 an artefact in the chosen format
    3  train the adapter                 a run
    4  quantize base with adapter        an artefact in that format, by a route

Each stage is a run directory, found again when its result stands, so a pipeline that
was killed goes on where it was. Controls, the base in further formats, tell what the
engine does from what the bits do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from loralab.config import ExperimentConfig, RouteConfig, StorageConfig, compose
from loralab.config.compose import presets
from loralab.config.problems import config_errors
from loralab.errors import ConfigError, nearest
from loralab.experiments.evaluator import ModelEvaluator
from loralab.export.artefact import quantize
from loralab.export.parity import Tolerance
from loralab.registry import Strict
from loralab.reporting.comparison import html, markdown
from loralab.runs import Run
from loralab.runs.environment import environment
from loralab.runs.files import write_json, write_text
from loralab.runs.run import held, now
from loralab.training.train import train

FORMAT_VERSION = 1
OnEvent = Callable[[dict[str, Any]], None]


class LatencyConfig(Strict):
    """What is timed."""

    rounds: int = Field(10, ge=6)
    batches: list[int] = Field([1, 8], min_length=1)
    prompt_tokens: int = Field(128, gt=0)
    new_tokens: int = Field(32, gt=1)


class PipelineConfig(Strict):
    """The four stages and what is compared."""

    experiment: str = Field(description="a preset, or a file that ends in .yaml")
    overrides: list[str] = Field(default_factory=list)
    base: StorageConfig = Field(
        default_factory=lambda: StorageConfig(name="safetensors"),
        description="how the base of stage 1 is stored",
    )
    quantized: StorageConfig = Field(description="the format of stages 2 and 4")
    with_adapter: StorageConfig | None = Field(
        None, description="the format of stage 4, where its route asks for another"
    )
    route: RouteConfig | None = Field(
        None, description="of stage 4; null: the usual one of the adapter's method"
    )
    controls: list[StorageConfig] = Field(
        default_factory=list,
        description="the base in further formats, so that an engine's effect is seen",
    )
    tolerance: Tolerance = Tolerance()
    prompts: list[str] = Field(
        default_factory=list, description="what every stage is asked"
    )
    latency: LatencyConfig = LatencyConfig()


class Timer:
    """Seconds of named pieces of work; ``with timer("training"): …``.

    Attributes:
        seconds: By name, in the order they began.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def read_pipeline(name: str) -> PipelineConfig:
    """Return the pipeline of a preset, or of a file that ends in ``.yaml``.

    Raises:
        ConfigError: no such preset or file, or keys that cannot be meant.
    """
    if name.endswith(".yaml"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise ConfigError("no such file", where=name)
    else:
        known = {k.replace("-", "_"): v for k, v in presets("pipeline").items()}
        key = name.replace("-", "_")
        if key not in known:
            raise ConfigError(
                f"no pipeline {name!r}; {nearest(key, known)}",
                fix="name a preset, or a path that ends in .yaml",
            )
        file = known[key]
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return PipelineConfig.model_validate(content)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(file)) from None
    except ValidationError as error:
        raise config_errors(error, content, str(file), PipelineConfig) from None


class CompleteTrainingPipeline:
    """The four stages of one experiment.

    Args:
        config: What the stages are.
        name: Of the pipeline.
        runs_dir: Where runs are made, or found.
        on_event: Told of progress.

    Attributes:
        timer: Seconds of each stage in this process.
    """

    def __init__(
        self,
        config: PipelineConfig,
        name: str,
        runs_dir: str | Path = "runs",
        on_event: OnEvent | None = None,
    ) -> None:
        self.config, self.runs_dir = config, Path(runs_dir)
        self.experiment: ExperimentConfig = compose(config.experiment, config.overrides)
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        text += self.experiment.hash
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        self.path = self.runs_dir / f"{name}-{digest}"
        self.name, self.timer = name, Timer()
        self._tell = on_event or (lambda _: None)

    def stage1_save_base_model(self) -> Run:
        """Store the base in float, and measure it."""
        return self._stored(self.experiment, self.config.base)

    def stage2_quantize_base_model(self) -> Run:
        """Store the base in the chosen format, and measure it."""
        return self._stored(self.experiment, self.config.quantized)

    def stage3_train_lora_model(self) -> Run:
        """Train the adapter; it is measured by the training."""
        return train(self.experiment, self.runs_dir, resume=True, on_event=self._tell)

    def stage4_quantize_lora_model(self) -> Run:
        """Store base and adapter in the chosen format, by the route, and measure it."""
        adapter = self.stage3_train_lora_model()
        storage = self.config.with_adapter or self.config.quantized
        return self._stored(adapter, storage, self.config.route)

    def _stored(
        self,
        what: Run | ExperimentConfig,
        storage: StorageConfig,
        route: RouteConfig | None = None,
    ) -> Run:
        run = quantize(
            what,
            storage,
            route,
            self.runs_dir,
            tolerance=self.config.tolerance,
            on_event=self._tell,
        )
        ModelEvaluator().evaluate_model(run)
        return run

    def run(self) -> dict[str, Any]:
        """Go through the stages and compare them.

        Returns:
            What is written to ``comparison.json``; beside it stand ``comparison.md``
            and ``comparison.html``.

        Raises:
            LoralabError: a stage cannot be done; those before it stand.
        """
        with held(self.path):
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            write_text(self.path / "pipeline.yaml", text)
            runs = self._stages()
            if (found := self._standing(runs)) is None:
                with self.timer("comparison"):
                    found = self._compared(runs)
            write_json(self.path / "pipeline.json", self._record(runs))
        self._tell({"event": "complete", "run": str(self.path)})
        return found

    def _stages(self) -> dict[str, Run]:
        """Return the run of each stage, made or found; controls after them."""
        stages: dict[str, Callable[[], Run]] = {
            "base": self.stage1_save_base_model,
            "base quantized": self.stage2_quantize_base_model,
            "LoRA": self.stage3_train_lora_model,
            "LoRA quantized": self.stage4_quantize_lora_model,
        }
        for control in self.config.controls:
            stages[f"base as {control.name}"] = lambda c=control: self._stored(  # type: ignore[misc]
                self.experiment, c
            )
        runs = {}
        for number, (name, stage) in enumerate(stages.items(), 1):
            about = {"stage": name, "number": number, "of": len(stages)}
            self._tell({"event": "stage", **about})
            with self.timer(name):
                runs[name] = stage()
        return runs

    def _standing(self, runs: dict[str, Run]) -> dict[str, Any] | None:
        """Return the comparison of just these runs, if it was made before."""
        file = self.path / "comparison.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found if found["stages"] == self._ids(runs) else None

    @staticmethod
    def _ids(runs: dict[str, Run]) -> dict[str, str]:
        return {name: run.id for name, run in runs.items()}

    def _compared(self, runs: dict[str, Run]) -> dict[str, Any]:
        """Compare the stages, and write JSON, Markdown and HTML."""
        chosen = list(runs.values())

        def tell(what: str, done: int, of: int) -> None:
            self._tell({"event": "comparing", "what": what, "done": done, "of": of})

        settings = self.config.latency.model_dump()
        found = ModelEvaluator(tell=tell).compare(
            chosen, inputs=self.config.prompts, **settings
        )
        found |= {"stages": self._ids(runs), "environment": environment()}
        write_text(self.path / "comparison.md", markdown(self.name, found))
        write_text(self.path / "comparison.html", html(self.name, found))
        write_json(self.path / "comparison.json", found)  # last: it says that all stand
        return found

    def _record(self, runs: dict[str, Run]) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "kind": "pipeline",
            "name": self.name,
            "finished": now(),
            "stages": self._ids(runs),
            "seconds": {k: round(v, 3) for k, v in self.timer.seconds.items()},
        }
