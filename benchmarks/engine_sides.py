"""The two sides of benchmarks/engine.py, and what is measured within one process.

    python benchmarks/engine_sides.py <function> <JSON of its arguments>

Answers on standard output, one line of JSON each; benchmarks/engine.py runs it, with OMP_NUM_THREADS set.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from criteo_shaped import (
    DENSE_LR,
    DLRM_PLUGIN,
    EPS,
    HAND_NETS,
    SPARSE_LR,
    HandBatch,
    config_text,
    hand_batches,
    hand_name,
    table,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter

from tzrec_core.config import parse_config
from tzrec_core.engine.pipeline import create_pipeline
from tzrec_core.engine.setup import torch_settings
from tzrec_core.engine.signals import StopSignals
from tzrec_core.engine.train import _Training  # the facade trains to the end; a step is what is measured here
from tzrec_core.engine.world import join_world, leave_world
from tzrec_core.plugins import Registry, Selection, use_registry

_MAX_BATCHES = 48  # in memory; few batches, seen often, are learnt by heart: numbers so small that steps take longer


@dataclass
class Side:
    """One way to train: a step over the next batch that gives its loss, and the parameters by name."""

    step: Callable[[], float]
    tensors: dict[str, Tensor]


@contextmanager
def engine_step(config: Any, rows: pa.Table) -> Iterator[Side]:
    """The very step of `tzrec train`, callbacks included, over the batches of a table, which are made beforehand."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        config.model_dir = folder
        world = join_world()
        stack.enter_context(torch_settings(config.train_config, world.device))
        training = _Training(config, world, rows, "")
        training.pipeline = create_pipeline(training.dmp, training.optimizer, world.device, training._look_at_loss)
        training.signals = stack.enter_context(StopSignals())
        training.callbacks.on_train_start(training.run)
        training.dmp.train()
        training.loader.start(0, 0)
        batches = training.timer.batches(cycle(list(training.loader)))

        def step() -> float:
            training._step(batches)
            return float(training.loss)

        tensors = {name.removeprefix("model."): _local(t) for name, t in training.dmp.state_dict().items()}
        yield Side(step, tensors)
        training.callbacks.on_train_end(training.run)
        batches.close()


def hand_steps(net: str, num_ids: int, batches: list[HandBatch]) -> dict[str, Side]:
    """The hand-written loop on torchrec's fused optimizer and its own plan: plain, and in its TrainPipelineBase.

    Both train the same parameters.
    """
    device = join_world().device
    model = HAND_NETS[net](num_ids, device)
    tables = [p for name, p in model.named_parameters() if "embedding_bags" in name]
    apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": SPARSE_LR, "eps": EPS})
    # left to itself, the planner replicates small tables, whose optimizer is then not fused
    constraint = ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device=device.type),
        constraints={config.name: constraint for ebc in _collections(model) for config in ebc.embedding_bag_configs()},
    )
    plan = planner.plan(model, get_default_sharders())
    dmp = DistributedModelParallel(model, device=device, plan=plan, init_data_parallel=False)
    dense = [p for _, p in in_backward_optimizer_filter(dmp.named_parameters())]
    optimizer = torch.optim.Adam(dense, lr=DENSE_LR)
    waiting = cycle(batches)

    def plain() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = dmp(next(waiting))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    pipeline = TrainPipelineBase(dmp, optimizer, device)
    ahead = cycle(batches)  # the pipeline holds a batch of its own
    tensors = {name: _local(t) for name, t in dmp.state_dict().items()}
    return {
        "plain loop": Side(plain, tensors),
        "TrainPipelineBase": Side(lambda: float(pipeline.progress(ahead)), tensors),
    }


def _collections(model: nn.Module) -> list[EmbeddingBagCollection]:
    return [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]


def _local(tensor: Any) -> Tensor:  # Any: a Tensor or torchrec's ShardedTensor, here of one process
    return tensor.local_shards()[0].tensor if hasattr(tensor, "local_shards") else tensor


@contextmanager
def sides(
    kind: str, net: str, num_ids: int, batch_size: int, num_batches: int, changes: Sequence[str] = ()
) -> Iterator[dict[str, Side]]:
    """The ways to train of one `kind`: `engine`, with changes of its config, or `hand`; equal rows for both."""
    rows = table(batch_size * min(num_batches, _MAX_BATCHES), num_ids)
    if kind == "hand":
        yield hand_steps(net, num_ids, hand_batches(rows, batch_size))
        return
    with engine_step(_config(net, num_ids, batch_size, changes), rows) as side:
        yield {"engine": Side(side.step, {hand_name(name): tensor for name, tensor in side.tensors.items()})}


def serve(**arguments: Any) -> Iterator[Any]:
    """Take steps on demand, so that two processes can take turns.

    Reads lines of JSON: ["step", side], ["save", path], ["load", path]. The parameters travel under the names of the
    hand-written net.

    Yields:
        names of the sides; then after each line [seconds, loss] of a step, or the number of parameters.
    """
    with sides(**arguments) as served:
        first = next(iter(served.values()))
        yield list(served)
        for line in sys.stdin:
            what, name = json.loads(line)
            if what == "step":
                start = time.perf_counter()
                loss = served[name].step()
                yield [time.perf_counter() - start, loss]
                continue
            if what == "save":
                torch.save(first.tensors, name)
            else:
                _fill(first.tensors, torch.load(name, mmap=True))
            yield sum(tensor.numel() for tensor in first.tensors.values())


def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    assert tensors.keys() == values.keys(), tensors.keys() ^ values.keys()
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def top_five(net: str, num_ids: int, batch_size: int, num_steps: int, warm_up: int) -> Iterator[list[str]]:
    """The five operators that take most of the engine's step, by torch's profiler, as lines of text."""
    with sides("engine", net, num_ids, batch_size, num_steps + warm_up) as served:
        step = served["engine"].step
        for _ in range(warm_up):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(num_steps):
                step()
    total = sum(event.self_cpu_time_total for event in profile.key_averages())
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:5]
    yield [
        f"{event.self_cpu_time_total / total:6.1%} {event.self_cpu_time_total / 1000 / num_steps:8.2f} ms/step "
        f"{event.count / num_steps:5.0f} calls/step  {event.key}"
        for event in events
    ]


def write_tables(
    folder: str, net: str, num_ids: int, batch_size: int, num_batches: int, num_workers: int
) -> Iterator[str]:
    """Write Parquet files of `num_batches` batches in all, and a config that trains on them; yields its path."""
    num_files = min(4, num_batches)
    rows = table(batch_size * num_batches, num_ids)
    for index in range(num_files):
        start = rows.num_rows * index // num_files
        part = rows.slice(start, rows.num_rows * (index + 1) // num_files - start)
        pq.write_table(part, Path(folder) / f"part-{index}.parquet", row_group_size=32768)
    path = Path(folder) / f"{net}.config"
    path.write_text(
        config_text(net, num_ids=num_ids, batch_size=batch_size, folder=Path(folder), num_workers=num_workers)
    )
    yield str(path)


def _config(net: str, num_ids: int, batch_size: int, changes: Sequence[str]) -> Any:
    return parse_config(config_text(net, num_ids=num_ids, batch_size=batch_size), overrides=changes, validate=True)


_FUNCTIONS: dict[str, Callable[..., Iterator[Any]]] = {f.__name__: f for f in (serve, top_five, write_tables)}


def run(function: str, arguments: dict[str, Any]) -> Iterator[Any]:
    """The answers of one of this file's functions, with the DLRM-shaped model at hand."""
    with use_registry(Registry.find(Selection(files=(DLRM_PLUGIN,)))):
        try:
            yield from _FUNCTIONS[function](**arguments)
        finally:
            leave_world()


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # of torchrec, about itself
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever else is printed
        for answer in run(sys.argv[1], json.loads(sys.argv[2])):
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
