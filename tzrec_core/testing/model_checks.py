"""Fast checks of a model on the CPU, over its packaged example and drawn rows.

Rows are complete, but for the checks that are about missing values, so that one mistake fails one check.
"""

# B rows

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tzrec_core import api
from tzrec_core.data import Batch
from tzrec_core.engine.setup import seed_everything, seed_step
from tzrec_core.models import BaseModel, PredictWrapper, TrainWrapper
from tzrec_core.plugins import Task, Trait
from tzrec_core.testing.asserts import assert_grad_flows, assert_same_predictions
from tzrec_core.testing.batches import make_batch, make_parser, with_empty_bags, with_empty_sequences, with_nulls
from tzrec_core.testing.check import NotClaimed, model_check
from tzrec_core.testing.layout import WIDTH, Layout, towers
from tzrec_core.testing.subject import ModelSubject
from tzrec_core.testing.tables import make_rows

_NUM_ROWS = 16
_MANY_ROWS = 64
_LEARNING_RATE, _MAX_STEPS = 0.01, 300
# The same sums in another order: of another batch size, or by other kernels.
_RTOL, _ATOL = 1e-4, 1e-5
# bfloat16 has 8 bits, of which a few layers leave 1%; of small predictions the error of what they are the sum of.
_BF16_RTOL, _BF16_ATOL = 0.05, 0.02


# What it builds and predicts


@model_check
def check_builds_on_cpu_and_meta(model: ModelSubject) -> None:
    """It builds on the CPU and, without storage, on meta, with the same parameters and buffers."""
    real, planned = (_state(model.build(device=device)) for device in ("cpu", "meta"))
    elsewhere = [f"{name} on {tensor.device}" for name, tensor in planned.items() if tensor.device.type != "meta"]
    assert not elsewhere, f"built under torch.device('meta'), it has {', '.join(elsewhere)}; name no device when making"
    shapes, planned_shapes = ({name: tuple(t.shape) for name, t in state.items()} for state in (real, planned))
    differ = {name for name, _ in shapes.items() ^ planned_shapes.items()}
    here, there = ({n: s for n, s in found.items() if n in differ} for found in (shapes, planned_shapes))
    assert not differ, f"on the CPU it has {here}, but on meta {there}"


@model_check
def check_prediction_keys(model: ModelSubject) -> None:
    """Its predictions have the keys, shapes and dtypes that its task and losses ask for."""
    config = model.config()
    built, batch = model.build(config).eval(), make_batch(config, _complete(config))
    for is_inference in (False, True):
        built.set_is_inference(is_inference)
        layout = model.layout(config, is_inference=is_inference)
        predictions = _predict(built, batch)
        for name in layout.shapes:
            assert name in predictions, f"{name!r} is missing; there are {', '.join(predictions)}"
            found, shape = predictions[name], layout.shape(name, _NUM_ROWS)
            is_equal = found.dim() == len(shape) and all(
                want in (size, WIDTH) for size, want in zip(found.shape, shape)
            )
            asked = str(shape).replace("'", "")
            assert is_equal, f"{name!r} has shape {tuple(found.shape)}, but should have {asked}"
            assert found.dtype == torch.float32, f"{name!r} is {found.dtype}, but should be torch.float32"
        _assert_rows(predictions, layout, _NUM_ROWS)


def _assert_rows(predictions: Mapping[str, Tensor], layout: Layout, num_rows: int) -> None:
    for name, value in predictions.items():
        for dim in layout.row_dims(name):
            assert value.dim() > dim and value.shape[dim] == num_rows, (
                f"{name!r} has shape {tuple(value.shape)}, but should have {num_rows} rows in dimension {dim}"
            )


@model_check
def check_finite(model: ModelSubject) -> None:
    """Predictions, losses and gradients are finite numbers."""
    config = model.config()
    wrapper, batch = model.wrapper(config).train(), make_batch(config, _complete(config))
    _assert_finite(_predict(wrapper.model, batch), "training prediction")
    _assert_finite_everywhere(wrapper, batch)


@model_check
def check_gradients(model: ModelSubject) -> None:
    """The losses have a gradient in every parameter that trains, but those listed in parameters_without_gradient."""
    config = model.config()
    batch = make_batch(config, _complete(config, _MANY_ROWS))
    assert_grad_flows(model.wrapper(config).train().model, batch, except_=model.parameters_without_gradient)


# What a row's prediction depends on


@model_check
def check_permutation(model: ModelSubject) -> None:
    """In eval mode, the rows of a batch may change places: their predictions change places with them."""
    config = model.config()
    layout, built, rows = model.layout(config), model.build(config).eval(), _complete(config)
    order = np.random.default_rng(0).permutation(_NUM_ROWS)
    moved = _predict(built, make_batch(config, rows.take(order)))
    want = layout.take(_predict(built, make_batch(config, rows)), torch.from_numpy(order))
    assert_same_predictions(moved, want, rtol=_RTOL, atol=_ATOL, what="rows in another order:")


@model_check
def check_padding(model: ModelSubject) -> None:
    """In eval mode, rows that join a batch at its end, with longer sequences, leave the other predictions as are."""
    config = model.config()
    layout, built, rows = model.layout(config), model.build(config).eval(), _shortest_first(config, _complete(config))
    few = _NUM_ROWS // 2
    want = _predict(built, make_batch(config, rows.slice(0, few)))
    joined = layout.take(_predict(built, make_batch(config, rows)), torch.arange(few))
    assert_same_predictions(joined, want, rtol=_RTOL, atol=_ATOL, what="rows after others joined them:")


def _shortest_first(config: Any, rows: pa.Table) -> pa.Table:
    parser = make_parser(config)
    flat = parser.parse(rows)
    num_steps = torch.zeros(rows.num_rows, dtype=torch.int64)
    for feature in parser.features:
        if feature.is_sequence:
            num_steps += flat[f"{feature.name}.{'seq_' if feature.is_multi_value_sequence else ''}lengths"]
    return rows.take(num_steps.argsort(stable=True).numpy())


@model_check(trait=Trait.SEQUENCE)
def check_sequences_matter(model: ModelSubject) -> None:
    """Other steps in a sequence, as many as before, change predictions; their order need not matter."""
    config = model.config()
    built, parser = model.build(config).eval(), make_parser(config)
    flat = parser.parse(_complete(config))
    used = built.get_features_in_feature_groups(config.model_config.feature_groups)
    sequences = [feature for feature in used if feature.is_sequence]
    assert sequences, "it claims Trait.SEQUENCE, but no feature group of its example has a sequence"
    want = _predict(built, parser.to_batch(flat))
    for feature in sequences:
        values = flat[f"{feature.name}.values"]
        other = (values + 1) % feature.num_embeddings if feature.is_sparse else values + 1
        found = _predict(built, parser.to_batch({**flat, f"{feature.name}.values": other}))
        assert any(not torch.equal(found[name], value) for name, value in want.items()), (
            f"other steps in {feature.name!r} do not change a prediction"
        )


@model_check(trait=Trait.ROWWISE_LOSS)
def check_zero_weights(model: ModelSubject) -> None:
    """Rows of sample weight 0 count as rows that are not there, in the loss and its gradients; dropout is off."""
    if Trait.BATCH_STATS in model.spec.traits:
        raise NotClaimed("the spec lists Trait.BATCH_STATS, with which every row counts")
    config = model.config()
    names = config.data_config.sample_weight_fields
    if not names:
        names.append("__sample_weight")
    for tower in towers(config) if model.spec.task is Task.MULTITASK else ():
        if "sample_weight_name" not in tower.DESCRIPTOR.fields_by_name:
            raise NotClaimed(f"{tower.DESCRIPTOR.name} has no sample_weight_name, so its rows have no weights")
        tower.sample_weight_name = tower.sample_weight_name or names[0]
    few = _NUM_ROWS // 2
    rows = _complete(config)
    for name in names:
        weights = pa.array([1.0] * few + [0.0] * (_NUM_ROWS - few), pa.float32())
        rows = rows.set_column(rows.column_names.index(name), name, weights)
    (weighted, weighted_grads), (dropped, dropped_grads) = (
        _loss_and_grads(_without_dropout(model.wrapper(config)), make_batch(config, part))
        for part in (rows, rows.slice(0, few))
    )
    assert_same_predictions(weighted, dropped, rtol=_RTOL, atol=_ATOL, what="with weights 0 instead of fewer rows:")
    what = "gradients, with weights 0 instead of fewer rows:"
    assert_same_predictions(weighted_grads, dropped_grads, rtol=_RTOL, atol=_ATOL, what=what)


def _loss_and_grads(wrapper: TrainWrapper, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    total_loss, _ = wrapper(batch)
    total_loss.backward()
    grads = {name: p.grad for name, p in wrapper.model.named_parameters() if p.grad is not None}
    return {"total loss": total_loss.detach()}, grads


# Rows that lack something


@model_check
def check_batch_of_one(model: ModelSubject) -> None:
    """It predicts a single row, in a batch of its own."""
    config = model.config()
    predictions = _predict(model.build(config).eval(), make_batch(config, _complete(config, 1)))
    _assert_finite(predictions, "prediction")
    _assert_rows(predictions, model.layout(config), 1)


@model_check
def check_empty_bags(model: ModelSubject) -> None:
    """Rows whose id features have no ids do no harm, among others and alone."""
    config = model.config()
    _assert_harmless(model, config, with_empty_bags(_complete(config), config))


@model_check
def check_empty_sequences(model: ModelSubject) -> None:
    """Rows whose sequences have no steps do no harm, among others and alone."""
    config = model.config()
    if not any(feature.is_sequence for feature in model.features(config)):
        raise NotClaimed("its example has no sequence")
    _assert_harmless(model, config, with_empty_sequences(_complete(config), config))


@model_check
def check_nulls(model: ModelSubject) -> None:
    """Rows with a null in every feature do no harm, among others and alone."""
    config = model.config()
    _assert_harmless(model, config, with_nulls(_complete(config), config))


@model_check
def check_unseen_ids(model: ModelSubject) -> None:
    """Ids that were never trained on do no harm, among others and alone."""
    config = model.config()
    _assert_harmless(model, config, make_rows(config, _NUM_ROWS, gaps=False, unseen=True))


def _assert_harmless(model: ModelSubject, config: Any, rows: pa.Table) -> None:
    among_others = pa.concat_tables([_complete(config, seed=1), rows])
    for table in (among_others, rows):
        _assert_finite_everywhere(model.wrapper(config), make_batch(config, table))


# Training


@model_check
def check_overfits(model: ModelSubject) -> None:
    """Training on the same 64 rows, with dropout off, halves the loss."""
    config = model.config()
    wrapper, batch = _without_dropout(model.wrapper(config)), make_batch(config, _complete(config, _MANY_ROWS))
    optimizer = torch.optim.Adam([p for p in wrapper.parameters() if p.requires_grad], _LEARNING_RATE)
    first = last = _step(wrapper, optimizer, batch)
    for _ in range(_MAX_STEPS):
        if last < first / 2:
            return
        last = _step(wrapper, optimizer, batch)
    raise AssertionError(f"the loss is {first:.4g} at first, and after {_MAX_STEPS} steps still {last:.4g}")


@model_check
def check_same_seed(model: ModelSubject) -> None:
    """From one seed training takes the same steps, bit by bit; what a step draws, it draws from torch's generator."""
    config = model.config()
    batch = make_batch(config, _complete(config, 2 * _NUM_ROWS))
    first, second = (_three_steps(model, config, batch, other_seed) for other_seed in (1, 2))
    assert_same_predictions(second, first, rtol=0, atol=0, what="after three steps from the same seed:")


def _three_steps(model: ModelSubject, config: Any, batch: Batch, other_seed: int) -> dict[str, Tensor]:
    wrapper = model.wrapper(config).train()
    optimizer = torch.optim.Adam([p for p in wrapper.parameters() if p.requires_grad], _LEARNING_RATE)
    # A continued run has these two in another state, but seeds torch's before each step.
    random.seed(other_seed)
    np.random.seed(other_seed)
    for step in range(3):
        seed_step(1, step, torch.device("cpu"), 0)
        _step(wrapper, optimizer, batch)
    return _state(wrapper.model)


@model_check
def check_eval_twice(model: ModelSubject) -> None:
    """In eval mode it predicts the same twice, bit by bit."""
    config = model.config()
    built, batch = model.build(config).eval(), make_batch(config, _complete(config))
    with torch.no_grad():  # and no seed in between
        first, second = ({name: value.clone() for name, value in built.predict(batch).items()} for _ in range(2))
    assert_same_predictions(second, first, rtol=0, atol=0, what="the second time:")


@model_check
def check_state_dict(model: ModelSubject) -> None:
    """Its state_dict makes a model that was initialised otherwise predict the same."""
    config = model.config()
    batch = make_batch(config, _complete(config))
    wrapper = model.wrapper(config, seed=1).train()
    wrapper(batch)  # whatever a step changes in buffers
    other = model.wrapper(config, seed=2)
    other.load_state_dict(wrapper.state_dict())
    got, want = (_predict(each.model.eval(), batch) for each in (other, wrapper))
    assert_same_predictions(got, want, rtol=0, atol=0, what="after load_state_dict:")


@model_check
def check_train_and_load(model: ModelSubject) -> None:
    """A model trained, saved and loaded again has the metrics and predictions of the one that was trained."""
    config = model.config("train_config.use_tensorboard=false", "train_config.num_epochs=1")
    layout, for_inference = model.layout(config), model.layout(config, is_inference=True)
    config.train_config.ClearField("num_steps")
    config.data_config.num_workers, config.data_config.batch_size = 0, 2 * _NUM_ROWS
    train_rows = _complete(config, 4 * _NUM_ROWS)
    eval_rows = make_rows(config, 2 * _NUM_ROWS, part=1, gaps=False)  # one batch for whoever predicts them
    with tempfile.TemporaryDirectory() as folder:
        config.model_dir = str(Path(folder) / "model")
        trained = api.train(config, train_data=train_rows, eval_data=eval_rows)
        evaluated = api.evaluate(config, eval_rows)
        table = api.predict(config, eval_rows).table
        loaded = api.load_model(config.model_dir)
        loaded.set_is_inference(False)
    metrics, trained_metrics = (
        {name: torch.tensor(float(value)) for name, value in values.items()}
        for values in (evaluated.metrics, trained.metrics)
    )
    assert_same_predictions(metrics, trained_metrics, rtol=_RTOL, atol=_ATOL, what="metrics of the loaded model:")
    with torch.no_grad():
        _, (predictions, _) = loaded(make_batch(config, eval_rows))
    assert table is not None
    want = layout.of_pairs(predictions)
    names = sorted({*want, *for_inference.shapes})
    assert sorted(table.column_names) == names, (
        f"api.predict has columns {sorted(table.column_names)}, but should have {names}"
    )
    got = {name: _column_tensor(table, name).to(value.dtype) for name, value in want.items()}
    assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what="api.predict, for inference:")


def _column_tensor(table: pa.Table, name: str) -> Tensor:
    return torch.tensor(table[name].to_pylist())


# Numbers and metrics


@model_check
def check_bf16(model: ModelSubject) -> None:
    """Under bfloat16 autocast it predicts nearly the same, in float32, and its gradients are finite."""
    config = model.config()
    built, batch = model.build(config).eval(), make_batch(config, _complete(config))
    with torch.no_grad():
        (_, (want, _)), (_, (got, _)) = (PredictWrapper(built, mixed_precision=mode)(batch) for mode in ("", "BF16"))
    for name, value in want.items():
        atol = max(_BF16_RTOL * float(value.abs().max()), _BF16_ATOL)
        assert_same_predictions({name: got[name]}, {name: value}, rtol=0, atol=atol, what="under bfloat16 autocast:")
    wrapper = TrainWrapper(built, mixed_precision="BF16").train()
    _, grads = _loss_and_grads(wrapper, batch)
    _assert_finite(grads, "gradient under bfloat16 autocast of")


@model_check
def check_metrics(model: ModelSubject) -> None:
    """Metrics and train metrics take batches in and give finite numbers; giving them starts the metrics afresh."""
    config = model.config()
    first, second = (make_batch(config, _complete(config, _MANY_ROWS, seed=seed)) for seed in (1, 2))
    used, fresh = model.wrapper(config).eval(), model.wrapper(config).eval()
    _assert_finite(_metrics(used, first), "metric")
    got, want = _metrics(used, second), _metrics(fresh, second)
    assert_same_predictions(got, want, rtol=_RTOL, atol=_ATOL, what="metrics after compute_metric, of the next batch:")
    with torch.no_grad():
        _, (_, predictions, batch) = used(first)
        for metric_config in config.model_config.train_metrics:
            for _ in range(metric_config.decay_step):
                used.model.update_train_metric(predictions, batch)
    _assert_finite(used.model.compute_train_metric(), "train metric")


def _metrics(wrapper: TrainWrapper, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        _, (losses, predictions, _) = wrapper(batch)
        wrapper.model.update_metric(predictions, batch, losses)
        return wrapper.model.compute_metric()


# What the checks share


def _complete(config: Any, num_rows: int = _NUM_ROWS, *, seed: int = 0) -> pa.Table:
    return make_rows(config, num_rows, seed=seed, gaps=False)


def _state(model: BaseModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _predict(model: BaseModel, batch: Batch) -> dict[str, Tensor]:
    """Predictions, drawing the same at each call if the model draws."""
    seed_everything(1)
    with torch.no_grad():
        return model.predict(batch)


def _step(wrapper: TrainWrapper, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """The loss before the step."""
    optimizer.zero_grad()
    total_loss, _ = wrapper(batch)
    total_loss.backward()
    optimizer.step()
    return total_loss.item()


def _without_dropout(wrapper: TrainWrapper) -> TrainWrapper:
    """In train mode, but for the layers that drop at random."""
    wrapper.train()
    for module in wrapper.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    return wrapper


def _assert_finite(values: Mapping[str, Tensor], what: str) -> None:
    for name, value in values.items():
        bad = ~torch.isfinite(value)
        if bad.any():
            index = bad.nonzero()[0].tolist()
            raise AssertionError(f"{what} {name!r} at {index} is {value[tuple(index)].item()}")


def _assert_finite_everywhere(wrapper: TrainWrapper, batch: Batch) -> None:
    """Predictions in eval mode, losses and gradients in train mode."""
    _assert_finite(_predict(wrapper.model.eval(), batch), "prediction")
    total_loss, (losses, _, _) = wrapper.train()(batch)
    _assert_finite(losses, "loss")
    total_loss.backward()
    grads = {name: p.grad for name, p in wrapper.model.named_parameters() if p.grad is not None}
    _assert_finite(grads, "gradient of")
