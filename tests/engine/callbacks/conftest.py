from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
import tiny_data
import torch

from tzrec_core.config import parse_config
from tzrec_core.data import DataParser
from tzrec_core.engine.callbacks import Run, StepOutput
from tzrec_core.engine.world import World
from tzrec_core.features import create_features
from tzrec_core.models import create_model


@dataclass
class FakeOptimizer:
    rates: dict[str, float] = field(default_factory=lambda: {"sparse": 0.02, "dense": 0.001})

    def learning_rates(self) -> dict[str, float]:
        return self.rates


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Run]:
    """`make_run("a.b=c", step=3)`: a run of the tiny model with these changes of its config and these fields."""

    def make(*overrides: str, rank: int = 0, text: str = tiny_data.CONFIG, **fields: Any) -> Run:
        torch.manual_seed(0)
        config = parse_config(text % {"folder": tmp_path}, overrides=overrides)
        features = create_features(config.feature_configs, config.data_config)
        model = create_model(config.model_config, features, list(config.data_config.label_fields))
        model.init_loss()
        model.init_metric()
        world = World(rank, rank + 1, rank, rank + 1, torch.device("cpu"))
        return Run(config, model, features, world, FakeOptimizer(), **fields)

    return make


@pytest.fixture
def make_output() -> Callable[..., StepOutput]:
    """`make_output(run, columns, predictions)`: a step on a batch of these columns."""

    def make(run: Run, columns: Any = None, predictions: Any = None) -> StepOutput:
        columns = tiny_data.table(4, 0) if columns is None else pa.table(columns)
        if "click" not in columns.column_names:
            columns = columns.append_column("click", pa.array([0] * len(columns)))
        parser = DataParser(run.features, labels=["click"])
        (rows,) = columns.combine_chunks().to_batches()
        batch = parser.to_batch(parser.parse(rows))
        if predictions is None:
            predictions = {"probs": torch.linspace(0.1, 0.9, len(columns))}
        return StepOutput(torch.tensor(0.7), {"binary_cross_entropy": torch.tensor(0.7)}, predictions, batch)

    return make


@pytest.fixture
def said(caplog) -> Callable[[], list[str]]:
    """What our own loggers said so far."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("tzrec_core")]
