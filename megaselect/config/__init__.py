"""One schema for model, data, training, recompute and logging, read from YAML and flags. Needs no torch."""

from megaselect.config.schema import (
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    RecomputeConfig,
    TrainingConfig,
    iter_settings,
)

__all__ = [
    "Config",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "RecomputeConfig",
    "TrainingConfig",
    "iter_settings",
]
