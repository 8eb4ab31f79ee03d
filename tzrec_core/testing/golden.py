"""Golden cases: does a model compute the numbers that TorchEasyRec measured?

A golden is a JSON file with a config, a batch, a rule that fills the parameters, and what came out. The test
of a plugin is

    golden = load_golden(path)
    assert_model_golden(golden, lambda: build(golden_config_text(golden)))
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection, JaggedTensor, KeyedJaggedTensor, KeyedTensor

from tzrec_core.data.batch import Batch
from tzrec_core.features import BaseFeature
from tzrec_core.testing.asserts import assert_same_tensor

Golden = dict[str, Any]  # Any: JSON

_RTOL, _ATOL = 2e-5, 2e-6
_GRAD_RTOL, _GRAD_ATOL = 1e-3, 1e-11
_VARIANTS = (("", 0.3, False), ("_ordered", 0.3, True), ("_strong", 1.0, True))  # suffix, amplitude, ordered
_UNBINNED_AUC = re.compile(r"\b(auc|multiclass_auc)\s*\{([^{}]*)\}")


def load_golden(path: str | Path) -> Golden:
    """Read a golden case."""
    golden: Golden = json.loads(Path(path).read_text(encoding="utf-8"))
    return golden


def golden_config_text(golden: Golden) -> str:
    """The case's config, a fragment for `parse_config(text, partial=True)`.

    The cases were measured with 200 bins where `auc` and `multiclass_auc` leave `thresholds` unset; the text
    says so.
    """

    def with_bins(match: re.Match[str]) -> str:
        name, body = match.groups()
        return match.group() if "thresholds" in body else f"{name} {{{body} thresholds: 200 }}"

    return _UNBINNED_AUC.sub(with_bins, golden["config_text"])


def to_tensor(value: Mapping[str, Any] | Sequence[Any] | float | str) -> Tensor:
    """A JSON tensor, a list or a number as a tensor.

    A JSON tensor is {values, dtype, shape}; without shape it is one-dimensional, without dtype float32 or
    int64.
    """
    if not isinstance(value, Mapping):
        return torch.tensor(_numbers(value))
    dtype = getattr(torch, value["dtype"]) if "dtype" in value else None
    tensor = torch.tensor(_numbers(value["values"]), dtype=dtype)
    return tensor.reshape(value["shape"]) if "shape" in value else tensor


def _numbers(value: Any) -> Any:
    """JSON has no NaN or infinity: they are strings there."""
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value


def golden_batch(batch: Mapping[str, Any], features: Sequence[BaseFeature] = ()) -> Batch:
    """A golden's `batch` as the model reads it.

    Args:
        batch: the JSON.
        features: tell the width of a sequence of numbers that has no step at all.
    """
    widths = {feature.name: feature.value_dim for feature in features}
    return Batch(
        dense_features={group: _keyed(columns) for group, columns in batch.get("dense", {}).items()},
        sparse_features={group: _keyed_jagged(columns) for group, columns in batch.get("sparse", {}).items()},
        sequence_mulval_lengths={
            group: _keyed_jagged(
                {
                    name: {"values": column["key_lengths"], "lengths": column["seq_lengths"]}
                    for name, column in columns.items()
                }
            )
            for group, columns in batch.get("sequence_mulval_lengths", {}).items()
        },
        sequence_dense_features={
            name: JaggedTensor(
                torch.tensor(_numbers(column["values"]), dtype=torch.float32).reshape(-1, _width(name, column, widths)),
                lengths=torch.tensor(column["lengths"], dtype=torch.int64),
            )
            for name, column in batch.get("sequence_dense", {}).items()
        },
        labels={name: to_tensor(label) for name, label in batch.get("labels", {}).items()},
        jagged_labels={
            name: JaggedTensor(to_tensor(label), lengths=torch.tensor(label["lengths"], dtype=torch.int64))
            for name, label in batch.get("jagged_labels", {}).items()
        },
        sample_weights={name: to_tensor(weight).float() for name, weight in batch.get("sample_weights", {}).items()},
        additional_infos={name: to_tensor(info) for name, info in batch.get("additional_infos", {}).items()},
    )


def _width(name: str, column: Mapping[str, Any], widths: Mapping[str, int]) -> int:
    return len(column["values"][0]) if column["values"] else widths.get(name, 1)


def _keyed(columns: Mapping[str, Any]) -> KeyedTensor:
    tensors = [torch.tensor(_numbers(rows), dtype=torch.float32) for rows in columns.values()]
    return KeyedTensor.from_tensor_list(list(columns), tensors)


def _keyed_jagged(columns: Mapping[str, Any]) -> KeyedJaggedTensor:
    weights = None
    if any("weights" in column for column in columns.values()):
        weights = [w for c in columns.values() for w in c.get("weights", [1.0] * len(c["values"]))]
    return KeyedJaggedTensor(
        keys=list(columns),
        values=torch.tensor([v for c in columns.values() for v in c["values"]], dtype=torch.int64),
        lengths=torch.tensor([n for c in columns.values() for n in c["lengths"]], dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float32) if weights is not None else None,
    )


def fill_parameters(module: nn.Module, *, amplitude: float = 0.3, ordered: bool) -> None:
    """Give every floating-point parameter the values of the goldens' rule.

    `p[t] = amplitude * sin(0.37 t + 0.11 ndim + 0.013 shape[0] + 0.5 k)`, t = row-major index, in float64.

    Args:
        module: a model before `init_loss()` and `init_metric()`, whose own parameters keep their defaults.
        amplitude: of the sine.
        ordered: k = how many parameters of the same shape come earlier, so that equal layers differ; else 0.
    """
    seen: dict[tuple[int, ...], int] = {}
    for _, parameter in _float_parameters(module):
        shape = tuple(parameter.shape)
        k = seen.get(shape, 0) if ordered else 0
        seen[shape] = seen.get(shape, 0) + 1
        index = torch.arange(parameter.numel(), dtype=torch.float64)
        phase = 0.11 * len(shape) + 0.013 * (shape[0] if shape else 0) + 0.5 * k
        with torch.no_grad():
            parameter.copy_((amplitude * torch.sin(0.37 * index + phase)).reshape(shape))


def _float_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            yield name, parameter


def assert_golden_parameters(module: nn.Module, golden: Golden) -> None:
    """The floating-point parameters have the names, shapes and order of `params.ordered`."""
    expected = [(name, tuple(shape)) for name, shape, _ in golden["params"]["ordered"]]
    actual = [(name, tuple(parameter.shape)) for name, parameter in _float_parameters(module)]
    where = golden["name"]
    missing = sorted(set(expected) - set(actual))
    extra = sorted(set(actual) - set(expected))
    assert not missing and not extra, f"{where}: parameters are missing: {missing}; parameters are too many: {extra}"
    for position, (want, got) in enumerate(zip(expected, actual, strict=True)):
        assert want == got, f"{where}: parameter {position} is {got}, but should be {want}"


def assert_close(actual: Any, expected: Any, where: str, *, rtol: float = _RTOL, atol: float = _ATOL) -> None:
    """Two tensors agree in shape, values and dtype; the message names the worst element.

    Args:
        actual: a tensor or number.
        expected: a JSON tensor, list or number; those without dtype fit any.
        where: what the message starts with.
        rtol, atol: as in torch.allclose; NaN equals NaN.
    """
    got = torch.as_tensor(actual).detach()
    want = to_tensor(expected)
    if isinstance(expected, Mapping) and "dtype" in expected:
        assert got.dtype == want.dtype, f"{where}: dtype is {got.dtype}, but should be {want.dtype}"
    assert_same_tensor(got, want, rtol=rtol, atol=atol, what=where)


def assert_tensors(actual: Mapping[str, Any], expected: Mapping[str, Any], where: str, **tolerance: float) -> None:
    """Two dicts of tensors or numbers have the same keys and agree."""
    assert sorted(actual) == sorted(expected), f"{where}: keys are {sorted(actual)}, but should be {sorted(expected)}"
    for key, value in expected.items():
        assert_close(actual[key], value, f"{where} {key!r}", **tolerance)


def assert_model_golden(
    golden: Golden,
    build: Callable[[], nn.Module],
    *,
    features: Sequence[BaseFeature] = (),
    special_fill: Callable[[nn.Module], None] | None = None,
) -> None:
    """A model has the golden's parameters and computes its numbers, in eval and train mode.

    Args:
        golden: the case.
        build: makes a fresh model from `golden_config_text(golden)`, before `init_loss` and `init_metric`.
        features: see `golden_batch`.
        special_fill: what the case's `special_fill` asks for; runs after the rule.
    """
    for suffix, amplitude, ordered in _VARIANTS:
        names = [f"{block}{suffix}" for block in ("embedding_groups", "eval", "train")]
        if not any(name in golden for name in names):
            continue
        model: Any = build()  # Any: a BaseModel, which torch.nn.Module's type does not show
        assert_golden_parameters(model, golden)
        fill_parameters(model, amplitude=amplitude, ordered=ordered)
        if special_fill is not None:
            special_fill(model)
        golden_names = [name for name, _ in _float_parameters(model)]
        model.init_loss()
        model.init_metric()
        groups, eval_block, train_block = names
        model.eval()
        for path, outputs in golden.get(groups, {}).items():
            where = f"{golden['name']} {groups} {path}"
            with torch.no_grad():
                actual = model.get_submodule(path)(golden_batch(golden["batch"], features))
            assert_tensors(actual, outputs, where)
        if eval_block in golden:
            _assert_block(golden, eval_block, model, golden_names, features)
        if train_block in golden:
            model.train()
            _assert_block(golden, train_block, model, golden_names, features)


def _assert_block(
    golden: Golden, block: str, model: Any, parameter_names: Sequence[str], features: Sequence[BaseFeature]
) -> None:
    expected, where = golden[block], f"{golden['name']} {block}"
    batch = golden_batch(golden["batch"], features)
    model.zero_grad(set_to_none=True)
    predictions = model.predict(batch)
    losses = model.loss(predictions, batch)
    total_loss = torch.stack([loss.double() for loss in losses.values()]).sum()
    assert_tensors(predictions, expected["predictions"], f"{where} predictions")
    assert_tensors(losses, expected["losses"], f"{where} losses")
    assert_close(total_loss, expected["total_loss"], f"{where} total_loss")
    if total_loss.requires_grad:
        total_loss.backward()
    _assert_gradients(expected, where, model, parameter_names)
    if "metrics" in expected:
        model.update_metric(predictions, batch, losses)
        assert_tensors(model.compute_metric(), expected["metrics"], f"{where} metrics")


def _assert_gradients(expected: Golden, where: str, model: nn.Module, parameter_names: Sequence[str]) -> None:
    tables = {id(parameter) for parameter in embedding_tables(model)}
    parameters = {name: model.get_parameter(name) for name in parameter_names}
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert without == expected["params_without_grad"], (
        f"{where} params_without_grad: are {without}, but should be {expected['params_without_grad']}"
    )
    sums = {"dense": 0.0, "sparse": 0.0}
    by_shape: dict[str, float] = {}
    for parameter in parameters.values():
        if parameter.grad is None:
            continue
        square = parameter.grad.double().square().sum().item()
        sums["sparse" if id(parameter) in tables else "dense"] += square
        shape = "x".join(str(size) for size in parameter.shape)
        by_shape[shape] = by_shape.get(shape, 0.0) + square
    sums["total"] = sums["dense"] + sums["sparse"]
    assert_tensors(
        by_shape, expected["grad_sq_by_shape"], f"{where} grad_sq_by_shape", rtol=_GRAD_RTOL, atol=_GRAD_ATOL
    )
    assert_tensors(sums, expected["grad_sq_sum"], f"{where} grad_sq_sum", rtol=_GRAD_RTOL, atol=_GRAD_ATOL)


def embedding_tables(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all embedding collections inside."""
    collections = (EmbeddingBagCollection, EmbeddingCollection)
    return [p for m in module.modules() if isinstance(m, collections) for p in m.parameters()]
