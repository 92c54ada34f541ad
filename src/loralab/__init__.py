"""loralab: the whole life of a LoRA adapter. Names are imported when first used."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# On a CPU torch and oneDNN keep 1,024 compiled kernels each, one a shape, with their
# buffers. Batches of many shapes filled 0.6 GB with them; 128 are as fast.
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_HOME = {
    "COMMON_DATASETS": "loralab.data.common",
    "CloudUploader": "loralab.publishing.publish",
    "ConfigError": "loralab.errors",
    "DataConfig": "loralab.config",
    "DataPreprocessor": "loralab.data.examples",
    "CompleteTrainingPipeline": "loralab.experiments.pipeline",
    "EarlyStoppingCallback": "transformers",
    "EvaluationConfig": "loralab.config",
    "ExperimentConfig": "loralab.config",
    "InferencePipeline": "loralab.inference.pipeline",
    "LoRAModule": "loralab.merging.sequential",
    "LoRAOPCMMerger": "loralab.merging.sequential",
    "LoralabError": "loralab.errors",
    "MergedState": "loralab.merging.state.state",
    "MergingAnalyzer": "loralab.merging.analysis.analyzer",
    "MetricsCalculator": "loralab.evaluation.calculator",
    "ModelConfig": "loralab.config",
    "OrthogonalProjector": "loralab.merging.projection",
    "MultiTaskEvaluator": "loralab.evaluation.multitask",
    "PEFTConfig": "loralab.config",
    "ModelEvaluator": "loralab.experiments.evaluator",
    "PEFTTrainer": "loralab.training.trainer",
    "Params": "loralab.registry",
    "RouteConfig": "loralab.config",
    "Run": "loralab.runs",
    "StorageConfig": "loralab.config",
    "TrainingConfig": "loralab.config",
    "WandBCallback": "loralab.training.callbacks._trackers",
    "Study": "loralab.experiments.study",
    "Sweep": "loralab.experiments.sweep",
    "analyse": "loralab.experiments.analyse",
    "attach": "loralab.adapters.attach",
    "compare": "loralab.evaluation.compare",
    "compose": "loralab.config",
    "diagnose": "loralab.evaluation.diagnose",
    "evaluate": "loralab.evaluation.evaluate",
    "find_run": "loralab.runs",
    "find_study": "loralab.experiments.study",
    "get_metrics_calculator": "loralab.evaluation.calculator",
    "get_preprocessor": "loralab.data.examples",
    "list_runs": "loralab.runs",
    "load_base": "loralab.models.base",
    "load_rows": "loralab.data.rows",
    "merge": "loralab.merging.sequential",
    "plan": "loralab.training.plan",
    "publish": "loralab.publishing.publish",
    "quantize": "loralab.export.artefact",
    "register": "loralab.registry",
    "sweep": "loralab.experiments.sweep",
    "target_config": "loralab.publishing.publish",
    "train": "loralab.training.train",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'loralab' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
