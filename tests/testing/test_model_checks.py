"""Each rule of a model, broken on a copy of tzrec-deepfm, makes the check that names it fail.

That no other check fails is tested in test_breakages.py.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from breakages import broken_copy, claims, failures, outcome

from tzrec_core.testing import graph_checks, model_checks
from tzrec_core.testing.check import Outcome, checks

MODEL = "tzrec_deepfm/model.py"
MANIFEST = "tzrec_deepfm/plugin.py"
EXAMPLE = "tzrec_deepfm/examples/tiny.config"
IDS = 'batch.sparse_features["__BASE__"]'
END = "return self._output_to_prediction(output)"
CLASS = "class DeepFM(RankModel):"
PREDICT = "    def predict(self"
OUTPUT_MLP = "self.output_mlp = nn.Linear(output_dim, self._num_class)"
DEEP = 'deep = self.deep_mlp(grouped["deep"])'
TRAITS = "frozenset({"
EXPORTED = "if torch.compiler.is_exporting():"
# torch.onnx does not know the operators of fbgemm that take the ids of one feature out of a batch.
WITHOUT_ONNX = ("SHARDED", "TORCH_EXPORT", "AOTI", "SCRIPT", "QUANT", "ROWWISE_LOSS")

# A copy whose deep group averages a sequence, which no model of the repo needs to have.
WITH_SEQUENCE = {
    **claims(*WITHOUT_ONNX, "SEQUENCE"),
    EXAMPLE: [
        (
            "model_config {",
            'feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks"\n'
            "  sequence_length: 5 hash_bucket_size: 100 embedding_dim: 8 } }\nmodel_config {",
        ),
        (
            '"age", "score"] }',
            '"age", "score"]\n    sequence_groups { group_name: "hist" feature_names: "clicks" }\n'
            '    sequence_encoders { pooling_encoder { input: "hist" pooling_type: "mean" } } }',
        ),
    ],
}


@dataclass
class Breakage:
    """Something broken in a copy.

    Attributes:
        edits: (old, new) in the model.
        words: of the message.
        also: other checks that cannot but fail with it.
        changes: of other files; then of all.
    """

    edits: list[tuple[str, str]]
    words: str
    also: set[str] = field(default_factory=set)
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.changes = {**self.changes, MODEL: self.edits}


def before_end(*lines):
    """Lines of code that change `output` before it becomes predictions."""
    return [(END, "\n        ".join([*lines, END]))]


def returns(*lines):
    """Lines of code that return something else than the predictions `found`."""
    return [(END, "\n        ".join([END.replace("return", "found ="), *lines]))]


def method(*lines):
    """Lines of code of another method."""
    return [(PREDICT, "".join(f"    {line}\n" for line in lines) + f"\n{PREDICT}")]


def in_module(*lines):
    """Lines of code before the class."""
    return [(CLASS, "\n".join([*lines, CLASS]))]


def in_constructor(*lines):
    """Lines of code at the end of the constructor."""
    return [(OUTPUT_MLP, "\n        ".join([OUTPUT_MLP, *lines]))]


# check -> what breaks it; the first of each is also run against all other checks
BREAKAGES = {
    "builds_on_cpu_and_meta": [
        Breakage([(OUTPUT_MLP, f'{OUTPUT_MLP}.to("cpu")')], "Cannot copy out of meta tensor"),
        Breakage(
            [(OUTPUT_MLP, OUTPUT_MLP.replace("num_class)", 'num_class, device="cpu")'))],
            "it has output_mlp.weight on cpu, output_mlp.bias on cpu; name no device",
        ),
        Breakage(
            in_constructor("if torch.get_default_device().type == 'meta':", "    del self.output_mlp"),
            "'output_mlp.bias': (1,)}, but on meta",
        ),
    ],
    "prediction_keys": [
        Breakage(
            returns("return {**found, 'probs': found['probs'].double()}"),
            "'probs' is torch.float64, but should be torch.float32",
        ),
        Breakage(returns("return {'logits': found['logits']}"), "'probs' is missing; there are logits"),
        Breakage(
            returns("return {**found, 'probs': found['probs'].unsqueeze(1)}"),
            "'probs' has shape (16, 1), but should have (16,)",
        ),
        Breakage(
            returns("return {**found, 'mean': found['probs'].mean()}"),
            "'mean' has shape (), but should have 16 rows in dimension 0",
        ),
    ],
    "finite": [
        Breakage(
            returns("return {**found, 'odds': found['probs'] / 0} if self.training else found"),
            "training prediction 'odds' at [0] is inf",
        ),
        Breakage(before_end("output = output / 0"), "prediction 'logits' at [0] is"),
        Breakage(before_end("output = output + (output * 0).sqrt()"), "gradient of"),
    ],
    "gradients": [
        Breakage([(DEEP, f"{DEEP}.detach()")], "no gradient reaches deep_mlp.mlp.0.perceptron.0.weight"),
        Breakage([(DEEP, f"{DEEP} * 0")], "no gradient reaches"),
    ],
    "permutation": [
        Breakage(
            before_end(
                "if not self.training:", "    output = output + 0.1 * torch.cumsum(torch.ones_like(output), dim=0)"
            ),
            "rows in another order: 'logits': worst at [",
        ),
    ],
    "padding": [
        Breakage(
            before_end("if not self.training:", "    output = output - 0.5 * output.mean(dim=0, keepdim=True)"),
            "rows after others joined them: 'logits': worst at [",
        ),
        Breakage(
            before_end(f'output = output + 0.1 * {IDS}["clicks"].lengths().max()'),
            "rows after others joined them:",
            changes=WITH_SEQUENCE,
        ),
    ],
    "sequences_matter": [
        Breakage(
            [
                (
                    DEEP,
                    'columns = grouped["deep"]\n'
                    "        if not self.training:\n"
                    "            columns = torch.cat([columns[:, :-8], 0 * columns[:, -8:]], dim=1)\n"
                    "        deep = self.deep_mlp(columns)",
                )
            ],
            "other steps in 'clicks' do not change a prediction",
            changes=WITH_SEQUENCE,
        ),
        Breakage(
            [],
            "no feature group of its example has a sequence",
            changes={MANIFEST: [(TRAITS, f"{TRAITS}Trait.SEQUENCE, ")]},
        ),
    ],
    "zero_weights": [
        Breakage(
            method(
                "def loss(self, predictions, batch):",
                "    size = 0.01 * predictions['logits'].square().mean()",
                "    return {**super().loss(predictions, batch), 'size': size}",
            ),
            "with weights 0 instead of fewer rows: 'total loss'",
        ),
        Breakage(
            in_constructor("self.norm = nn.BatchNorm1d(self._num_class)") + before_end("output = self.norm(output)"),
            "with weights 0 instead of fewer rows: 'total loss'",
        ),
    ],
    "batch_of_one": [
        Breakage(
            [('grouped["wide"], dim=1, keepdim=True)', 'grouped["wide"], dim=1).squeeze().unsqueeze(1)')],
            "IndexError: Dimension out of range",
            # which are proved on one row too
            also={"torch_export", "script", "aot_inductor", "onnx", "quantised_tables"},
        ),
        Breakage(
            returns("return {name: value.squeeze() for name, value in found.items()}"),
            "'logits' has shape (), but should have 1 rows in dimension 0",
        ),
    ],
    "empty_bags": [
        Breakage(
            before_end(f'output = output / {IDS}["tags"].lengths().unsqueeze(1)'),
            "prediction 'logits' at [16] is",
            also={"nulls"},  # a null is an empty bag too
            changes=claims(*WITHOUT_ONNX),
        ),
    ],
    "empty_sequences": [
        Breakage(
            before_end(f'output = output / {IDS}["clicks"].lengths().unsqueeze(1)'),
            "prediction 'logits' at [16] is",
            also={"nulls"},  # a null is an empty sequence too
            changes=WITH_SEQUENCE,
        ),
    ],
    "nulls": [
        Breakage(
            before_end(
                'score = batch.dense_features["__BASE__"].values().abs()',
                f'output = output / (score + {IDS}["user_id"].lengths().unsqueeze(1))',
            ),
            "prediction 'logits' at [16] is",
            changes=claims(*WITHOUT_ONNX),
        ),
    ],
    "unseen_ids": [
        Breakage(
            before_end(f'output = output + nn.functional.one_hot({IDS}["user_id"].values(), 900).sum() * 0'),
            "Class values must be smaller than num_classes",
            changes=claims(*WITHOUT_ONNX),
        ),
    ],
    "overfits": [
        Breakage(before_end("output = 0.01 * torch.tanh(output)"), "the loss is 0.69"),
    ],
    "same_seed": [
        Breakage(
            in_module("import numpy as np")
            + before_end("if self.training:", "    output = output + 0.1 * np.random.normal()"),
            "after three steps from the same seed:",
            also={"sharded"},  # which compares two models that draw one after the other
        ),
    ],
    "eval_twice": [
        Breakage(before_end("output = output + 1e-6 * torch.rand_like(output)"), "the second time: 'logits'"),
    ],
    "state_dict": [
        Breakage(
            in_constructor("self._shift = torch.rand(1)") + before_end("output = output + self._shift"),
            "after load_state_dict: 'logits'",
            also={"train_and_load"},  # a checkpoint is a state_dict in a file
        ),
    ],
    "train_and_load": [
        Breakage(
            before_end("if self.is_inference:", "    output = 2 * output"), "api.predict, for inference: 'logits'"
        ),
        Breakage(
            in_constructor("self._factor = 1.0")
            + method("def on_train_end(self):", "    self._factor = 2.0")
            + before_end("output = self._factor * output"),
            "metrics of the loaded model:",
        ),
    ],
    "bf16": [
        Breakage(
            before_end("output = output.to(deep.dtype) + 100 - 100"),  # bfloat16 knows no number between 100 and 100.5
            "under bfloat16 autocast: 'logits'",
        ),
    ],
    "metrics": [
        Breakage(
            method(
                "def compute_metric(self):",
                "    return {name: metric.compute() for name, metric in self._metric_modules.items()}",
            ),
            "metrics after compute_metric, of the next batch:",
        ),
    ],
    "fx_trace": [
        Breakage(
            before_end("if output.sum() > 1e9:", "    output = 2 * output"),
            "TraceError",
            also={"torch_export", "script", "aot_inductor", "onnx"},  # a branch on values is in no graph
        ),
    ],
    "torch_export": [
        Breakage(
            before_end(EXPORTED, "    output = 2 * output"),
            "the program, of 16 rows: 'logits': worst at [",
            also={"aot_inductor", "onnx"},  # which take the program that torch.export makes
        ),
        Breakage(
            in_module("@torch.fx.wrap", "def same(x):", "    return x * float(x.numpy().max() < 1e9)")
            + before_end("if not self.training:", "    output = same(output)"),
            "at tzrec_",
        ),
    ],
}
CASES = [pytest.param(name, b, id=f"{name}-{i}") for name, several in BREAKAGES.items() for i, b in enumerate(several)]


@pytest.mark.parametrize(("check", "breakage"), CASES)
def test_the_check_that_names_a_broken_rule_fails_and_says_what_is_wrong(check, breakage, tmp_path):
    with broken_copy(tmp_path, breakage.changes) as subject:
        found, message = outcome(subject, check)
    assert found is Outcome.FAILED
    assert breakage.words in message


@pytest.mark.parametrize("changes", [{}, WITH_SEQUENCE], ids=["as it is", "with a sequence"])
def test_a_healthy_copy_passes_all(changes, tmp_path):
    with broken_copy(tmp_path, changes) as subject:
        assert failures(subject, "model") == {}


def test_every_check_has_a_breakage():
    modules = {graph_checks.__name__, model_checks.__name__}
    assert {check.name for check in checks("model", slow=True) if check.run.__module__ in modules} == set(BREAKAGES)
