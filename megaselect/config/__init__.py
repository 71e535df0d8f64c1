"""One schema for model, data, training, recompute, parallel and logging, read from YAML and flags. Needs no torch."""

from megaselect.config.data import DataConfig
from megaselect.config.logging import LoggingConfig
from megaselect.config.model import ModelConfig
from megaselect.config.parallel import ParallelConfig
from megaselect.config.recompute import RecomputeConfig
from megaselect.config.schema import Config, iter_settings
from megaselect.config.training import TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "ParallelConfig",
    "RecomputeConfig",
    "TrainingConfig",
    "iter_settings",
]
