"""Checks of a model whose batch is split: what its parts owe each other; learning and predicting in two processes.

All but the first are slow.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import pyarrow as pa
import torch
import torch.distributed as dist
from google.protobuf import text_format
from torch import Tensor, nn

from tzrec_core.data import Batch
from tzrec_core.engine.optim import TrainOptimizer, fuse_sparse_optimizer
from tzrec_core.engine.sharders import collections_of
from tzrec_core.engine.sharding import shard
from tzrec_core.engine.shards import local_shards
from tzrec_core.engine.world import World
from tzrec_core.models import TrainWrapper
from tzrec_core.plugins import Trait
from tzrec_core.testing.asserts import assert_same_predictions, assert_same_tensor
from tzrec_core.testing.batches import make_batch
from tzrec_core.testing.check import NotClaimed, model_check
from tzrec_core.testing.subject import ModelSubject
from tzrec_core.testing.tables import make_rows
from tzrec_core.testing.two_ranks import on_two_ranks

_NUM_ROWS = 16
# The same sums in another order.
_RTOL, _ATOL = 1e-4, 1e-5
_STEP_RTOL, _ROUNDING = 1e-4, 1e-6
_LEARNING_RATE = 1.0  # large, so that what differs in a gradient is seen in the parameters
_SGD = f"sgd_optimizer {{ lr: {_LEARNING_RATE} }} constant_learning_rate {{}}"

M = TypeVar("M", bound=nn.Module)


@model_check(trait=Trait.BATCH_STATS)
def check_batch_stats(model: ModelSubject) -> None:
    """In train mode, predictions of half of the rows are others than within the whole batch; dropout is off."""
    config = model.config()
    rows, layout = _rows(config), model.layout(config)
    wrapper = _without_dropout(model.wrapper(config))
    whole = layout.take(_predict(wrapper, make_batch(config, rows)), torch.arange(_NUM_ROWS // 2))
    half = _predict(wrapper, make_batch(config, _half(rows, 0)))
    assert any(not torch.allclose(half[name], value, rtol=_RTOL, atol=_ATOL) for name, value in whole.items()), (
        "it claims Trait.BATCH_STATS, but no prediction of a row depends on the rows beside it; leave the claim out"
    )


@model_check(trait=Trait.ROWWISE_LOSS, slow=True)
def check_two_ranks_step(model: ModelSubject) -> None:
    """An SGD step of two ranks with half of the rows each is the step of one rank with all; dropout is off."""
    if Trait.BATCH_STATS in model.spec.traits:
        raise NotClaimed("the spec lists Trait.BATCH_STATS, with which every row of a batch counts")
    config = model.config()
    rows = _rows(config)
    wrapper = _without_dropout(model.wrapper(config))
    state = {name: tensor.clone() for name, tensor in wrapper.state_dict().items()}
    ranks = on_two_ranks(model, _step_of_half, state, rows)
    want = _sgd_step(wrapper, make_batch(config, rows))
    for rank, got in enumerate(ranks):
        _assert_same_step(got, want, state, what=f"after a step of two ranks, on rank {rank}:")


def _step_of_half(model: ModelSubject, world: World, state: Mapping[str, Tensor], rows: pa.Table) -> dict[str, Tensor]:
    config = model.config()
    wrapper = _without_dropout(model.wrapper(config))
    wrapper.load_state_dict(state)
    return _sgd_step(wrapper, make_batch(config, _half(rows, world.rank)), world)


@model_check(slow=True)
def check_two_ranks_predict(model: ModelSubject) -> None:
    """Each of two ranks predicts for its rows what one rank predicts for them."""
    if Trait.ROWWISE_LOSS in model.spec.traits and Trait.BATCH_STATS not in model.spec.traits:
        raise NotClaimed("two_ranks_step proves more of a model that claims Trait.ROWWISE_LOSS")
    config = model.config()
    rows = _rows(config)
    wrapper = model.wrapper(config).eval()
    ranks = on_two_ranks(model, _predict_half, wrapper.state_dict(), rows)
    for rank, got in enumerate(ranks):
        want = _predict(wrapper, make_batch(config, _half(rows, rank)))
        assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what=f"on rank {rank} of 2:")


def _predict_half(model: ModelSubject, world: World, state: Mapping[str, Tensor], rows: pa.Table) -> dict[str, Tensor]:
    config = model.config()
    wrapper = model.wrapper(config).eval()
    wrapper.load_state_dict(state)
    return _predict(wrapper, make_batch(config, _half(rows, world.rank)))


@model_check(trait=Trait.SHARDED, slow=True)
def check_sharded(model: ModelSubject) -> None:
    """With its tables spread over two ranks by the planner it predicts and learns as with whole tables."""
    config = model.config()
    wrapper = model.wrapper(config)
    assert collections_of(wrapper), "it claims Trait.SHARDED, but its example has no embedding table"
    on_two_ranks(model, _compare_sharded, wrapper.state_dict(), _rows(config))


def _compare_sharded(model: ModelSubject, world: World, state: Mapping[str, Tensor], rows: pa.Table) -> None:
    config = model.config()
    settings = config.train_config
    settings.Clear()
    text_format.Parse(f"sparse_optimizer {{ {_SGD} }} dense_optimizer {{ {_SGD} }}", settings)
    batch = make_batch(config, _half(rows, world.rank))
    whole, wrapper = model.wrapper(config), model.wrapper(config)
    for each in (whole, wrapper):
        each.load_state_dict(state)
    fuse_sparse_optimizer(settings, wrapper.model)
    sharded = shard(wrapper, config, world, is_fused=True)
    optimizer = TrainOptimizer(settings, sharded, is_fused=True)

    got, want = _predict(sharded.eval(), batch), _predict(whole.eval(), batch)
    assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what="with sharded tables:")

    want = _sgd_step(_without_dropout(whole), batch, world)
    optimizer.zero_grad()
    loss, _ = _without_dropout(sharded)(batch)
    optimizer.backward(loss)
    optimizer.step()
    _assert_same_step(sharded.state_dict(), want, state, what="after a step with sharded tables:")


def _rows(config: Any) -> pa.Table:
    """Rows whose halves weigh the same: a loss is divided by the mean weight of a rank's own rows.

    Labels are among what weighs, where they say which rows belong to a task.
    """
    rows = make_rows(config, _NUM_ROWS, gaps=False)
    for name in [*config.data_config.sample_weight_fields, *config.data_config.label_fields]:
        half = rows.column(name).slice(0, _NUM_ROWS // 2)
        rows = rows.set_column(rows.column_names.index(name), name, pa.chunked_array([*half.chunks, *half.chunks]))
    return rows


def _half(rows: pa.Table, rank: int) -> pa.Table:
    few = rows.num_rows // 2
    return rows.slice(rank * few, few)


def _without_dropout(model: M) -> M:
    """In train mode, but for the layers that drop at random."""
    model.train()
    for module in model.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    return model


def _predict(wrapper: nn.Module, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        _, (_, predictions, _) = wrapper(batch)
    return predictions  # type: ignore[no-any-return]


def _sgd_step(wrapper: TrainWrapper, batch: Batch, world: World | None = None) -> dict[str, Tensor]:
    """The parameters after a step; with a world, one by the mean of its ranks' gradients."""
    loss, _ = wrapper(batch)
    loss.backward()
    parameters = {name: parameter for name, parameter in wrapper.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in parameters.values():
            step = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            if world is not None:
                dist.all_reduce(step)
                step /= world.size
            parameter.sub_(_LEARNING_RATE * step)
    return {name: parameter.detach() for name, parameter in parameters.items()}


def _assert_same_step(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], before: Mapping[str, Tensor], *, what: str
) -> None:
    """What this process holds of the parameters agrees, up to a small part of the step that they took."""
    steps = {name: (value - before[name]).abs().max() for name, value in want.items() if value.numel()}
    noise = _ROUNDING * max(max(step, before[name].abs().max()) for name, step in steps.items())
    for name, step in steps.items():
        for offsets, part in local_shards(got[name]):
            wanted = want[name]
            for dim, (start, length) in enumerate(zip(offsets, part.shape)):
                wanted = wanted.narrow(dim, start, length)
            atol = float(_STEP_RTOL * step + noise)
            place = f", the part from {list(offsets)}" if any(offsets) else ""
            assert_same_tensor(part, wanted, rtol=0, atol=atol, what=f"{what} {name!r}{place}")
