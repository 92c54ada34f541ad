"""What a run is: a frozen, strict schema, composed from YAML and `key=value`."""

from loralab.config.compose import compose, load_resolved, validate
from loralab.config.schema import (
    CallbackConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    MergeConfig,
    MetricConfig,
    ModelConfig,
    PEFTConfig,
    RankStrategyConfig,
    RouteConfig,
    SourceConfig,
    StorageConfig,
    TaskConfig,
    TrainingConfig,
)

__all__ = [
    "CallbackConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "MergeConfig",
    "MetricConfig",
    "ModelConfig",
    "PEFTConfig",
    "RankStrategyConfig",
    "RouteConfig",
    "SourceConfig",
    "StorageConfig",
    "TaskConfig",
    "TrainingConfig",
    "compose",
    "load_resolved",
    "validate",
]
