"""What checks expect of multi-task and matching models: new ones hold it, and a check names what is broken."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from breakages import failures, outcome

from tzrec_core.plugins import Registry, Selection, Task, Trait, use_registry
from tzrec_core.scaffold.plugin import PluginNames, plugin_files
from tzrec_core.testing.check import Outcome, checks, run_check
from tzrec_core.testing.layout import ROWS, Layout, towers
from tzrec_core.testing.subject import PluginSubject


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """By task a plugin as `tzrec new-plugin` writes it, given as a file; its multi-task model claims ROWWISE_LOSS."""
    manifests = {}
    with pytest.MonkeyPatch.context() as patch:
        for task in (Task.MULTITASK, Task.MATCH):
            folder, names = tmp_path_factory.mktemp(task), PluginNames(f"new_{task}")
            for path, text in plugin_files(names, task=task, dataclass=False, standalone=False).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                if task is Task.MULTITASK:
                    text = text.replace("traits=frozenset({", "traits=frozenset({Trait.ROWWISE_LOSS, ")
                (folder / path).write_text(text, encoding="utf-8")
            patch.syspath_prepend(str(folder))
            manifest = folder / names.package / f"{names.model}.py"  # for two files of one name would be one module
            (folder / names.package / "plugin.py").rename(manifest)
            manifests[task] = str(manifest)
        with use_registry(Registry.find(Selection(only=frozenset(), files=tuple(manifests.values())))):
            yield {task: PluginSubject.find(file) for task, file in manifests.items()}


@pytest.fixture
def multitask(plugins):
    return plugins[Task.MULTITASK]


@pytest.fixture
def match(plugins):
    return plugins[Task.MATCH]


@pytest.mark.parametrize("task", [Task.MULTITASK, Task.MATCH])
def test_a_new_plugin_passes_all_that_it_claims(task, plugins):
    (model,) = plugins[task].models
    results = [run_check(check, model) for check in checks("model", slow=False)]
    assert [f"{r.check}: {r.message}" for r in results if r.outcome in (Outcome.FAILED, Outcome.SKIPPED)] == []
    assert {"permutation", "padding", "prediction_keys", "overfits", "train_and_load"} <= {
        r.check for r in results if r.outcome is Outcome.PASSED
    }


def test_each_tower_of_a_multi_task_model_has_the_predictions_of_its_losses(multitask):
    (model,) = multitask.models
    config = model.config()
    first, *others = towers(config)
    assert others
    first.ClearField("losses")
    first.losses.add().softmax_cross_entropy.SetInParent()
    first.num_class = 2
    shapes = model.layout(config).shapes
    name = first.tower_name
    assert {key: shapes[key] for key in (f"logits_{name}", f"probs_{name}", f"probs1_{name}")} == {
        f"logits_{name}": (ROWS, 2), f"probs_{name}": (ROWS, 2), f"probs1_{name}": (ROWS,)
    }  # fmt: skip
    assert all(any(key.endswith(f"_{tower.tower_name}") for key in shapes) for tower in others)


def test_rows_of_a_similarity_of_all_pairs_are_taken_in_both_dimensions():
    layout = Layout({"similarity": (ROWS, ROWS)})
    predictions = {"similarity": torch.arange(9).reshape(3, 3), "norm": torch.arange(3)}
    taken = layout.take(predictions, torch.tensor([2, 0]))
    assert {name: value.tolist() for name, value in taken.items()} == {"similarity": [[8, 6], [2, 0]], "norm": [2, 0]}
    pairs = layout.of_pairs(predictions)
    assert {name: value.tolist() for name, value in pairs.items()} == {"similarity": [0, 4, 8], "norm": [0, 1, 2]}


@dataclass
class Breakage:
    """Something broken in a new plugin.

    Attributes:
        task: of its model.
        check: what names the rule.
        change: takes the model and its predictions, and gives others.
        words: of the message.
        also: other checks that cannot but fail with it.
    """

    task: Task
    check: str
    change: Any
    words: str
    also: set[str] = field(default_factory=set)


def last_tower(model):
    return towers(SimpleNamespace(model_config=model._base_model_config))[-1].tower_name


def without_a_tower(model, predictions):
    name = f"probs_{last_tower(model)}"
    return {key: value for key, value in predictions.items() if key != name}


def without_embeddings(model, predictions):
    return {"similarity": predictions["similarity"]}


def of_pairs(model, predictions):
    found = predictions["similarity"]
    return {**predictions, "similarity": found if model.is_inference else found.diagonal()}


def in_one_tower(change):
    """The change in the logits of the last tower."""

    def broken(model, predictions):
        name = f"logits_{last_tower(model)}"
        return {**predictions, name: change(predictions[name])}

    return broken


def in_similarity(change):
    return lambda model, predictions: {**predictions, "similarity": change(predictions["similarity"])}


def add_place(value):
    return value + 0.1 * torch.cumsum(torch.ones_like(value), dim=0)


def minus_mean(value):
    return value - 0.5 * value.mean(dim=0)


def twice_for_inference(model, predictions):
    return in_similarity(lambda value: 2 * value)(model, predictions) if model.is_inference else predictions


BREAKAGES = [
    Breakage(
        Task.MULTITASK,
        "prediction_keys",
        without_a_tower,
        "is missing; there are logits_",
        {"metrics", "train_and_load"},
    ),
    Breakage(Task.MULTITASK, "permutation", in_one_tower(add_place), "rows in another order: 'logits_"),
    Breakage(Task.MULTITASK, "padding", in_one_tower(minus_mean), "others joined them: 'logits_", {"zero_weights"}),
    Breakage(
        Task.MATCH,
        "prediction_keys",
        without_embeddings,
        "'user_tower_emb' is missing; there are similarity",
        {"train_and_load"},
    ),
    Breakage(Task.MATCH, "permutation", in_similarity(add_place), "rows in another order: 'similarity': worst at ["),
    Breakage(Task.MATCH, "padding", in_similarity(minus_mean), "others joined them: 'similarity'", {"train_and_load"}),
    Breakage(Task.MATCH, "train_and_load", twice_for_inference, "api.predict, for inference: 'similarity'"),
]
CASES = [pytest.param(b, id=f"{b.task}-{b.check}") for b in BREAKAGES]


def break_it(monkeypatch, plugin, change):
    cls = type(plugin.models[0].build())
    predict = cls.predict
    monkeypatch.setattr(cls, "predict", lambda self, batch: change(self, predict(self, batch)))


@pytest.mark.parametrize("breakage", CASES)
def test_the_check_that_names_a_broken_rule_fails_and_says_what_is_wrong(breakage, plugins, monkeypatch):
    plugin = plugins[breakage.task]
    break_it(monkeypatch, plugin, breakage.change)
    found, message = outcome(plugin, breakage.check)
    assert found is Outcome.FAILED
    assert breakage.words in message


@pytest.mark.slow
@pytest.mark.parametrize("breakage", CASES)
def test_no_other_check_fails(breakage, plugins, monkeypatch):
    plugin = plugins[breakage.task]
    break_it(monkeypatch, plugin, breakage.change)
    assert set(failures(plugin, "model")) == {breakage.check, *breakage.also}


def test_a_similarity_without_the_other_items_is_named_with_the_shape_that_it_should_have(match, monkeypatch):
    break_it(monkeypatch, match, of_pairs)
    found, message = outcome(match, "prediction_keys")
    assert found is Outcome.FAILED
    assert "'similarity' has shape (16,), but should have (16, 16)" in message


def test_a_tower_whose_loss_counts_rows_of_weight_0_is_named(multitask, monkeypatch):
    (model,) = multitask.models
    assert Trait.ROWWISE_LOSS in model.spec.traits
    cls = type(model.build())
    loss = cls.loss

    def broken(self, predictions, batch):
        size = predictions[f"logits_{last_tower(self)}"].square().mean()
        return {**loss(self, predictions, batch), "size": size}

    monkeypatch.setattr(cls, "loss", broken)
    found, message = outcome(multitask, "zero_weights")
    assert found is Outcome.FAILED
    assert "with weights 0 instead of fewer rows:" in message


@pytest.mark.slow
@pytest.mark.parametrize(("task", "check"), [(Task.MULTITASK, "two_ranks_step"), (Task.MATCH, "two_ranks_predict")])
def test_two_ranks_learn_tasks_with_a_space_as_one_and_match_within_the_rows_of_each(task, check, plugins):
    assert outcome(plugins[task], check) == (Outcome.PASSED, "")
