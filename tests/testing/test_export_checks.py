"""Each rule about serving a model, broken on a copy of tzrec-deepfm, makes the check that names it fail.

That no other check fails is tested in test_breakages.py.
"""

import importlib.util
from unittest import mock

import pytest
from breakages import MANIFEST, Breakage, broken_copy, claims, outcome

from tzrec_core.config.unsupported import REFUSED
from tzrec_core.testing.check import Outcome

MODEL = "tzrec_deepfm/model.py"
EXAMPLE = "tzrec_deepfm/examples/tiny.config"
END = "return self._output_to_prediction(output)"
CLASS = "class DeepFM(RankModel):"
EXPORTED = "if torch.compiler.is_exporting():"


def before_end(*lines, module=()):
    """A change of the model: lines that change `output` before it becomes predictions, and lines before the class."""
    return {MODEL: [(END, "\n        ".join([*lines, END])), (CLASS, "\n".join([*module, CLASS]))]}


def example(old, new):
    """A change of the packaged example."""
    return {EXAMPLE: [(old, new)]}


# The core has no such kernel yet, and refuses it; a model's own code can all the same look at the setting.
TRITON = {
    **example("model_config {", "model_config {\n  kernel: TRITON"),
    MANIFEST: [
        *claims()[MANIFEST],
        (
            "",
            "\n\nfrom tzrec_core.config.unsupported import REFUSED\n\nREFUSED.pop('ModelConfig.kernel=TRITON', None)\n",
        ),
    ],
}

# check -> what breaks it; the first of each is also run against all other checks
BREAKAGES = {
    "script": [
        Breakage(
            claims("SCRIPT")
            | before_end(
                "output = shifted(output)", module=["@torch.fx.wrap", "def shifted(x):", "    return x + min({0: 0})\n"]
            ),
            "RuntimeError",
        ),
        Breakage(
            claims("SCRIPT")
            | before_end(
                "output = shifted(output)",
                module=[
                    "@torch.fx.wrap",
                    "def shifted(x: torch.Tensor) -> torch.Tensor:",
                    "    return 2 * x if torch.jit.is_scripting() else x\n",
                ],
            ),
            "of several rows, 'logits': worst at [",
        ),
    ],
    "aot_inductor": [
        Breakage(
            claims("AOTI") | example("hidden_units: [32, 16]", "hidden_units: [65, 16]"),
            "has 65 units; give the layers",
        ),
        Breakage(
            claims("AOTI") | before_end(EXPORTED, "    output = 2 * output"), "of several rows, 'logits': worst at ["
        ),
        Breakage(
            claims("AOTI") | before_end(EXPORTED, "    output = output * float(output.sum() < 1e9)"),
            "Could not guard on data-dependent expression",
        ),
    ],
    "onnx": [
        Breakage(
            claims("ONNX") | before_end("if not self.training:", "    output = torch.special.bessel_j1(output)"),
            "torch.onnx cannot convert it: No ONNX function found for <OpOverload(op='prims.bessel_j1'",
        ),
        Breakage(
            claims("ONNX") | before_end(EXPORTED, "    output = 2 * output"), "of several rows, 'logits': worst at ["
        ),
    ],
    "quantised_tables": [
        Breakage(
            claims("QUANT")
            | before_end(
                'tables = self.embedding_group.emb_impls["__BASE__"].ebc.embedding_bags',
                'output = output + tables["gender_emb"].weight.detach().float().mean()',
            ),
            "with tables in int8, of several rows, 'logits': worst at [",
        ),
    ],
    "kernel": [
        Breakage(
            TRITON | before_end("if self.kernel().name == 'TRITON':", "    output = 1.1 * output"),
            "by TRITON: 'logits': worst at [",
        ),
        Breakage(
            TRITON
            | before_end("if self.kernel().name == 'TRITON':", "    output = 1.1 * output - 0.1 * output.detach()"),
            "gradients by TRITON: 'embedding_group.",
        ),
    ],
}
NEEDS_A_WHILE = {("aot_inductor", 1), ("onnx", 0), ("onnx", 1)}
CASES = [
    pytest.param(name, breakage, id=f"{name}-{i}", marks=[pytest.mark.slow] if (name, i) in NEEDS_A_WHILE else [])
    for name, several in BREAKAGES.items()
    for i, breakage in enumerate(several)
]


@pytest.fixture(autouse=True)
def refused_again_afterwards():
    with mock.patch.dict(REFUSED):
        yield


@pytest.mark.parametrize(("check", "breakage"), CASES)
def test_the_check_that_names_a_broken_rule_fails_and_says_what_is_wrong(check, breakage, tmp_path):
    if check == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    with broken_copy(tmp_path, breakage.changes) as subject:
        found, message = outcome(subject, check)
    assert found is Outcome.FAILED
    assert breakage.words in message


def test_a_kernel_that_computes_the_same_passes(tmp_path):
    with broken_copy(tmp_path, TRITON) as subject:
        assert outcome(subject, "kernel") == (Outcome.PASSED, "")


def test_a_model_is_held_to_what_it_claims_only(tmp_path):
    with broken_copy(tmp_path, claims()) as subject:
        found = {name: outcome(subject, name)[0] for name in BREAKAGES}
    assert set(found.values()) == {Outcome.NOT_CLAIMED}


def test_without_the_onnx_packages_the_check_is_skipped_and_says_what_to_install(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with broken_copy(tmp_path, claims("ONNX")) as subject:
        found, message = outcome(subject, "onnx")
    assert found is Outcome.SKIPPED
    assert "onnxruntime not installed; run: pip install 'tzrec-core[onnx]'" in message


def test_without_a_compiler_the_check_is_skipped_and_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with broken_copy(tmp_path, claims("AOTI")) as subject:
        assert outcome(subject, "aot_inductor") == (
            Outcome.SKIPPED,
            "there is no C++ compiler 'no-such-compiler'; install g++, or set CXX",
        )
