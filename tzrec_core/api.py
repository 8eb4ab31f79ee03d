"""The public facade: what the command line does, from Python.

A config may be a path, a text or a parsed message everywhere; data a path, a pyarrow Table, or a pandas or polars
DataFrame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tzrec_core.config import find_mistakes, load_config, parse_config
from tzrec_core.errors import ConfigError

if TYPE_CHECKING:
    from tzrec_core.engine.cluster import ClusterPlan
    from tzrec_core.engine.leaderboard import Leaderboard
    from tzrec_core.engine.predict import PredictResult
    from tzrec_core.engine.replay import ReplayResult
    from tzrec_core.engine.train import TrainResult
    from tzrec_core.models import PredictWrapper


def train(
    config: Any, *, overrides: Sequence[str] = (), train_data: Any = None, eval_data: Any = None
) -> "TrainResult":
    """Train the model of a config; see `tzrec_core.engine.train.train`.

    Args:
        config: path, text or message.
        overrides: changes, as `--set` takes them.
        train_data: data to train on; None = the config's train_input_path.
        eval_data: data to evaluate on; None = the config's eval_input_path.

    Raises:
        ConfigError: all mistakes of the config at once.
        DataError, PluginError, CheckpointError: what else can go wrong.
    """
    checked = as_config(config, overrides=overrides)
    from tzrec_core.engine.train import train as run

    return run(checked, train_data=train_data, eval_data=eval_data)


@dataclass
class EvalResult:
    """What an evaluation measured.

    Attributes:
        checkpoint: the folder that was evaluated.
        step: its step.
        metrics: value by name.
    """

    checkpoint: Path
    step: int
    metrics: dict[str, float]


def evaluate(
    config: Any,
    data: Any = None,
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | Path | None = None,
) -> EvalResult:
    """Evaluate a checkpoint and write the metrics to `<model_dir>/eval_result.txt`.

    Args:
        config: path, text or message.
        data: what to evaluate on; None = the config's eval_input_path.
        overrides: changes, as `--set` takes them.
        checkpoint: folder; None = the latest of model_dir.

    Raises:
        ConfigError: all mistakes of the config at once, or there is nothing to evaluate on.
        CheckpointError: there is no checkpoint, or it does not fit the config.
        DataError, PluginError: as `train`.
    """
    checked = as_config(config, overrides=overrides)
    from tzrec_core.engine.evaluate import evaluate as run

    return EvalResult(*run(checked, data, checkpoint=checkpoint))


def predict(
    config: Any,
    data: Any,
    output_path: str | None = None,
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    reserved_columns: Sequence[str] = (),
    output_columns: Sequence[str] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> "PredictResult":
    """Predict every row of a table with a checkpoint.

    Args:
        config: path, text or message.
        data: path or table to predict; labels are not needed.
        output_path: a folder, or a file that ends in .parquet or .csv; None = return the predictions.
        overrides: changes, as `--set` takes them.
        checkpoint: folder; None = the latest of model_dir.
        reserved_columns: input columns to write beside the predictions; `["ALL_COLUMNS"]` = all.
        output_columns: predictions to write; None = all.
        batch_size: rows per batch; None = the config's.
        overwrite: replace what an earlier run wrote.

    Raises:
        ConfigError: all mistakes of the config at once, or a column is asked for that cannot be.
        CheckpointError: there is no checkpoint, or it does not fit the config.
        DataError: a row cannot be read, or the output exists.
        PluginError: a plugin that the model needs does not work.
    """
    checked = as_config(config, overrides=overrides)
    from tzrec_core.engine.predict import predict as run

    return run(
        checked,
        data,
        output_path,
        checkpoint=checkpoint,
        reserved_columns=reserved_columns,
        output_columns=output_columns,
        batch_size=batch_size,
        overwrite=overwrite,
    )


def compare(
    configs: Mapping[str, Any], output: str | Path, *, num_seeds: int = 3, overrides: Sequence[str] = ()
) -> "Leaderboard":
    """Train several configs on the same batches and write a leaderboard; see `tzrec_core.engine.compare.compare`.

    Args:
        configs: path, text or message, by the name that each gets on the leaderboard.
        output: folder for the runs, leaderboard.md, leaderboard.json and leaderboard.png; runs that have finished
            there are not trained again.
        num_seeds: runs of each config, with seeds 1 to `num_seeds`.
        overrides: changes to all configs, as `--set` takes them.

    Returns:
        the leaderboard; runs that failed are in its entries' `errors`.

    Raises:
        ConfigError: all mistakes of a config at once; or the configs do not train on the same batches.
        DataError, PluginError: as `train`, before anything is trained.
    """
    checked = {}
    for name, config in configs.items():
        try:
            checked[name] = as_config(config, overrides=overrides)
        except ConfigError as error:
            raise ConfigError(error.problems, title=name) from error
    from tzrec_core.engine.compare import compare as run

    return run(checked, output, num_seeds=num_seeds)


def replay(config: Any, *, overrides: Sequence[str] = (), failure: str | Path | None = None) -> "ReplayResult":
    """Run a step again at which training stopped because a loss was not finite.

    Args:
        config: path, text or message.
        overrides: changes, as `--set` takes them.
        failure: the folder `failed-<step>`; None = the latest of model_dir.

    Returns:
        what was found then and now, and the range of each input.

    Raises:
        ConfigError: all mistakes of the config at once, or there is no failed step.
        CheckpointError: the kept parameters cannot be read, or do not fit the config.
        DataError, PluginError: as `train`.
    """
    checked = as_config(config, overrides=overrides)
    from tzrec_core.engine.replay import replay as run

    return run(checked, failure)


def plan(
    config: Any,
    world_size: int,
    *,
    overrides: Sequence[str] = (),
    local_world_size: int | None = None,
    device: str = "cuda",
    hbm: str | int | None = None,
    ddr: str | int | None = None,
    batch_size: int | None = None,
) -> "ClusterPlan":
    """Plan how processes on machines that need not be here would hold the embedding tables.

    Args:
        config: path, text or message.
        world_size: number of processes.
        overrides: changes, as `--set` takes them.
        local_world_size: processes per machine; None = 8, or all if there are fewer.
        device: `cuda` or `cpu`.
        hbm: memory of a GPU, in bytes or such as "80GB"; `cuda` needs it.
        ddr: host memory of a machine, likewise; `cpu` needs it, and on `cuda` tables stay in GPU memory without it.
        batch_size: rows per process and step; None = the config's.

    Raises:
        ConfigError: all mistakes of the config at once; or the tables do not fit, or cannot be split as it asks.
        PluginError: a plugin that the model needs does not work.
    """
    checked = as_config(config, overrides=overrides)
    from tzrec_core.engine.cluster import plan_cluster

    return plan_cluster(
        checked,
        world_size,
        local_world_size=local_world_size,
        device=device,
        hbm=hbm,
        ddr=ddr,
        batch_size=batch_size,
    )


def load_model(model_dir: str | Path, *, checkpoint: str | Path | None = None) -> "PredictWrapper":
    """The trained model of a model_dir on the CPU, in eval mode and for inference: call `wrapper(batch)`.

    Args:
        model_dir: what a training run wrote; its `pipeline.config` says how to build the model.
        checkpoint: folder; None = the latest of model_dir.

    Raises:
        ConfigError: there is no pipeline.config.
        CheckpointError: there is no checkpoint, or it is damaged.
        PluginError: a plugin that the model needs is not installed.
    """
    config = as_config(Path(model_dir) / "pipeline.config")
    from tzrec_core.engine.checkpoint import find_checkpoint
    from tzrec_core.engine.checkpoint import load_model as fill
    from tzrec_core.features import create_features
    from tzrec_core.models import PredictWrapper, create_model

    model = create_model(
        config.model_config,
        create_features(config.feature_configs, config.data_config),
        list(config.data_config.label_fields),
        list(config.data_config.sample_weight_fields),
        sampler_type=config.data_config.WhichOneof("sampler"),
    )
    wrapper = PredictWrapper(model, mixed_precision=config.train_config.mixed_precision)
    fill(find_checkpoint(model_dir, checkpoint), wrapper)
    wrapper.eval()
    wrapper.set_is_inference(True)
    return wrapper


def as_config(config: Any, *, overrides: Sequence[str] = ()) -> Any:
    """Load, change and check a config given as path, text or message.

    Raises:
        ConfigError: all of its mistakes at once, those of the features included.
    """
    source = ""
    if isinstance(config, Path) or (isinstance(config, str) and "\n" not in config and "{" not in config):
        source = str(config)
        config = load_config(config, overrides=overrides)
    elif isinstance(config, str) or overrides:
        config = parse_config(str(config), overrides=overrides)
    mistakes = find_mistakes(config)
    if mistakes:
        raise ConfigError([*mistakes, *_feature_mistakes(config)], title=source)
    return config


def _feature_mistakes(config: Any) -> list[str]:
    from tzrec_core.features import create_features

    try:
        create_features(config.feature_configs, config.data_config)
    except ConfigError as error:
        return error.problems
    return []


__all__ = ["EvalResult", "as_config", "compare", "evaluate", "load_model", "plan", "predict", "replay", "train"]
