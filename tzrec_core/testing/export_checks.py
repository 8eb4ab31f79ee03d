"""Slow checks of what a model can be turned into for serving, and of its kernels."""

import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torchrec import EmbeddingCollection
from torchrec.fx import Tracer
from torchrec.inference.modules import quantize_embeddings
from torchrec.quant.embedding_modules import EmbeddingCollection as QuantEmbeddingCollection

from tzrec_core.data import Batch, DataParser
from tzrec_core.engine.sharders import collections_of
from tzrec_core.models import ScriptWrapper
from tzrec_core.modules.base import Kernel
from tzrec_core.plugins import Trait
from tzrec_core.protos import model_pb2
from tzrec_core.testing.asserts import assert_same_predictions, assert_same_tensor
from tzrec_core.testing.batches import make_batch, with_nulls
from tzrec_core.testing.check import NotClaimed, Skipped, model_check
from tzrec_core.testing.graph_checks import export_program
from tzrec_core.testing.subject import ModelSubject
from tzrec_core.testing.tables import make_rows

_NUM_ROWS = 16
_MANY_ROWS = 64
_FIRST = "several rows"
# The same sums in another order, by other kernels.
_RTOL, _ATOL = 1e-4, 1e-5
_QUANT_SHARE = 0.1  # an int8 has 256 steps between the smallest and the largest number of a row
_MAX_UNITS = 64
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Flat = dict[str, Tensor]


@model_check(trait=Trait.SCRIPT, slow=True)
def check_script(model: ModelSubject) -> None:
    """Traced, scripted, saved and loaded, it predicts what it predicts."""
    wrapper, inputs = _wrapper_and_inputs(model)
    graph = Tracer(leaf_modules=["EmbeddingBagCollection", "EmbeddingCollection"]).trace(wrapper)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.fx.GraphModule(wrapper, graph)), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    _assert_same(lambda data: scripted(data, torch.device("cpu")), wrapper, inputs)


@model_check(trait=Trait.AOTI, slow=True)
def check_aot_inductor(model: ModelSubject) -> None:
    """Compiled by AOTInductor, for any number of rows and ids, it predicts what it predicts."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise Skipped(f"there is no C++ compiler {compiler!r}; install g++, or set CXX")
    wrapper, inputs = _wrapper_and_inputs(model)
    for name, module in wrapper.named_modules():
        assert not isinstance(module, nn.Linear) or module.out_features <= _MAX_UNITS, (
            f"{name.removeprefix('model.')} has {module.out_features} units; give the layers of the packaged example "
            f"{_MAX_UNITS} at most, or compiling it takes long"
        )
    program = export_program(wrapper, inputs[_FIRST])
    with tempfile.TemporaryDirectory(prefix="tzrec-") as folder:
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        _assert_same(compiled, wrapper, inputs)


@model_check(trait=Trait.ONNX, slow=True)
def check_onnx(model: ModelSubject) -> None:
    """Exported to ONNX, for any number of rows and ids, it predicts in onnxruntime what it predicts."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"{', '.join(missing)} not installed; run: pip install 'tzrec-core[onnx]'")
    import onnxruntime

    wrapper, inputs = _wrapper_and_inputs(model)
    names = list(_predict(wrapper, inputs[_FIRST]))
    exported = _to_onnx(export_program(wrapper, inputs[_FIRST]), list(inputs[_FIRST]), names)
    with tempfile.TemporaryDirectory(prefix="tzrec-") as folder:
        file = Path(folder) / "model.onnx"
        exported.save(file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it says below that goes past Python to the screen; errors are raised too
        session = onnxruntime.InferenceSession(file, options)

    def run(data: Flat) -> Flat:
        values = session.run(names, {name: tensor.numpy() for name, tensor in data.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}

    _assert_same(run, wrapper, inputs)


def _to_onnx(program: ExportedProgram, inputs: list[str], outputs: list[str]) -> torch.onnx.ONNXProgram:
    try:
        exported = torch.onnx.export(program, input_names=inputs, output_names=outputs, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error  # whose own words are a page
        while cause.__cause__:
            cause = cause.__cause__
        raise AssertionError(f"torch.onnx cannot convert it: {cause}") from error
    assert exported is not None
    return exported


@model_check(trait=Trait.QUANT, slow=True)
def check_quantised_tables(model: ModelSubject) -> None:
    """With its tables in int8, predictions move by a tenth of their spread over rows at most."""
    wrapper, inputs = _wrapper_and_inputs(model)
    assert collections_of(wrapper), "it claims Trait.QUANT, but its example has no embedding table"
    wanted = {kind: _predict(wrapper, data) for kind, data in inputs.items()}
    quantised = quantize_embeddings(
        wrapper,
        torch.qint8,
        inplace=True,
        additional_qconfig_spec_keys=[EmbeddingCollection],
        additional_mapping={EmbeddingCollection: QuantEmbeddingCollection},
    )
    left = list(collections_of(quantised))
    assert not left, f"{', '.join(left)} still has tables of floats"
    spread = {name: float(value.double().std(dim=0).max()) for name, value in wanted[_FIRST].items()}
    for kind, data in inputs.items():
        got = _predict(wrapper, data)
        assert sorted(got) == sorted(spread), f"keys are {sorted(got)}, but should be {sorted(spread)}"
        for name, value in wanted[kind].items():
            atol = _QUANT_SHARE * spread[name]
            assert_same_tensor(got[name], value, rtol=0, atol=atol, what=f"with tables in int8, of {kind}, {name!r}")


@model_check(slow=True)
def check_kernel(model: ModelSubject) -> None:
    """The kernel that its example asks for predicts, and has gradients, as the reference in PyTorch."""
    config = model.config()
    wanted = Kernel[model_pb2.Kernel.Name(config.model_config.kernel)]
    if wanted is Kernel.PYTORCH:
        raise NotClaimed("its example has no model_config.kernel but the reference, PYTORCH")
    batch = make_batch(config, make_rows(config, _MANY_ROWS, gaps=False))
    (values, grads), (wanted_values, wanted_grads) = (
        _values_and_grads(model, config, batch, kernel) for kernel in (wanted, Kernel.PYTORCH)
    )
    assert_same_predictions(values, wanted_values, rtol=_RTOL, atol=_ATOL, what=f"by {wanted.name}:")
    assert_same_predictions(grads, wanted_grads, rtol=_RTOL, atol=_ATOL, what=f"gradients by {wanted.name}:")


def _values_and_grads(model: ModelSubject, config: Any, batch: Batch, kernel: Kernel) -> tuple[Flat, Flat]:
    wrapper = model.wrapper(config).eval()
    wrapper.set_kernel(kernel)
    loss, (_, predictions, _) = wrapper(batch)
    loss.backward()
    grads = {name: p.grad for name, p in wrapper.model.named_parameters() if p.grad is not None}
    return predictions, grads


def _wrapper_and_inputs(model: ModelSubject) -> tuple[ScriptWrapper, dict[str, Flat]]:
    """The model as it is served, and flat tensors of what it reads, by what kind of rows they are."""
    config = model.config()
    wrapper = ScriptWrapper(model.build(config)).eval()
    parser = DataParser(wrapper.model.get_features_in_feature_groups(config.model_config.feature_groups))
    rows = make_rows(config, _NUM_ROWS, gaps=False)
    tables = {
        _FIRST: rows,
        "more rows": make_rows(config, _MANY_ROWS, seed=1),
        "one row": rows.slice(0, 1),
        "rows of nulls": with_nulls(rows, config),
    }
    return wrapper, {kind: parser.parse(table) for kind, table in tables.items()}


def _assert_same(run: Callable[[Flat], Flat], wrapper: ScriptWrapper, inputs: dict[str, Flat]) -> None:
    for kind, data in inputs.items():
        with torch.no_grad():
            got = run(data)
        assert_same_predictions(got, _predict(wrapper, data), rtol=_RTOL, atol=_ATOL, what=f"of {kind},")


def _predict(wrapper: ScriptWrapper, data: Flat) -> Flat:
    with torch.no_grad():
        return wrapper(data)  # type: ignore[no-any-return]
