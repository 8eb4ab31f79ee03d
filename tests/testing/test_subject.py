"""Plugins and models as checks see them."""

import os
import sys

import pytest
import torch
from breakages import broken_copy

from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.plugins import Registry, Selection, Task, registry, use_registry
from tzrec_core.testing.check import Skipped
from tzrec_core.testing.subject import ModelSubject, PluginSubject


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    with broken_copy(tmp_path_factory.mktemp("copy")) as found:
        yield found


@pytest.fixture
def model(plugin):
    return plugin.models[0]


@pytest.fixture
def file(plugin, monkeypatch):
    """The copy's manifest as a file, where no plugin is enabled."""
    path = plugin.package_folder / "first_hour.py"
    path.write_text((plugin.package_folder / "plugin.py").read_text())
    monkeypatch.setenv("TZREC_PLUGINS", "")
    with use_registry(Registry.find(Selection.from_environment())):
        yield path
    sys.modules.pop("first_hour", None)


def test_a_plugin_is_found_by_its_distribution_and_its_entry_point(plugin):
    for name in (plugin.name, plugin.name.replace("-", "_"), "deepfm"):
        assert PluginSubject.find(name).plugin is plugin.plugin
    assert plugin.distribution.version == "0.1.0"
    assert [model.spec.name for model in plugin.models] == ["deepfm"]


def test_an_editable_plugin_has_a_package_and_a_source(plugin):
    assert (plugin.package_folder / "plugin.py").is_file()
    assert plugin.source_folder == plugin.package_folder.parent
    assert (plugin.source_folder / "pyproject.toml").is_file()


def test_an_unknown_plugin_is_an_error_that_names_the_nearest(plugin):
    with pytest.raises(PluginError, match=r"there is no plugin 'deepfn'\. Did you mean 'deepfm'\? Installed: tzrec-"):
        PluginSubject.find("deepfn")


def test_a_plugin_that_is_not_ok_is_an_error_with_its_reason_and_cause(find_plugins):
    with (
        use_registry(find_plugins("tzrec-import-error")),
        pytest.raises(PluginError, match="tzrec-import-error is broken: ModuleNotFoundError") as caught,
    ):
        PluginSubject.find("tzrec-import-error")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_disabled_plugin_is_an_error_that_says_how_to_enable_it(find_plugins):
    with use_registry(find_plugins("tzrec-plain")), pytest.raises(PluginError, match="To enable it"):
        PluginSubject.find("acme-ranking")


def test_a_manifest_is_found_by_its_path_and_is_in_use_only_within_the_block(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    found = PluginSubject.find("./first_hour.py")
    assert (found.name, found.distribution, found.source_folder) == (str(file), None, None)
    assert found.package_folder == file.parent
    assert [model.spec.name for model in found.models] == ["deepfm"]
    outside = registry()
    with found.in_use():
        assert registry() is found.registry
        assert os.environ["TZREC_PLUGIN_FILES"] == str(file)  # children see it too
        assert found.models[0].build().__class__.__name__ == "DeepFM"
    assert registry() is outside
    assert "TZREC_PLUGIN_FILES" not in os.environ


def test_a_manifest_that_is_not_there_is_an_error(file):
    with pytest.raises(PluginError, match="there is no such file"):
        PluginSubject.find("./second_hour.py")


def test_each_config_is_a_new_message_with_the_overrides(model):
    first, second = model.config(), model.config("data_config.batch_size=8")
    assert (first.data_config.batch_size, second.data_config.batch_size) == (32, 8)
    first.data_config.batch_size = 1
    assert model.config().data_config.batch_size == 32


def test_mistakes_in_an_override_and_a_missing_example_are_named(model):
    with pytest.raises(ConfigError, match="batch_sizes"):
        model.config("data_config.batch_sizes=8")
    spec = model.spec.__class__("bare", "a:B", "a_pb2:B", summary="S.")
    with pytest.raises(AssertionError, match="model 'bare' has no example to check it with"):
        ModelSubject(spec, model.plugin).config()


def test_a_model_is_built_from_its_seed_on_the_cpu_or_without_storage(model):
    first, second, third = model.build(), model.build(), model.build(seed=2)
    names = [name for name, _ in first.named_parameters()]
    assert all(torch.equal(first.get_parameter(name), second.get_parameter(name)) for name in names)
    assert not all(torch.equal(first.get_parameter(name), third.get_parameter(name)) for name in names)
    assert {p.device.type for p in model.build(device="meta").parameters()} == {"meta"}
    assert not first._loss_modules


def test_a_wrapper_has_losses_and_metrics(model):
    wrapper = model.wrapper(model.config("model_config.num_class=1"))
    assert "binary_cross_entropy" in wrapper.model._loss_modules
    assert "auc" in wrapper.model._metric_modules


def test_features_are_those_of_the_example(model):
    assert [feature.name for feature in model.features()] == ["user_id", "gender", "tags", "age", "score"]


def test_predictions_are_known_of_tasks_that_have_a_base_class_and_others_wait_for_theirs(model):
    assert model.layout(model.config()).shapes == {"logits": ("B",), "probs": ("B",)}
    spec = model.spec.__class__("m", "a:B", "a_pb2:B", task=Task.TREE, summary="S.")
    with pytest.raises(Skipped, match="checks for task tree come with its base class"):
        ModelSubject(spec, model.plugin).layout(model.config())


def test_a_plugin_that_is_not_editable_has_no_source(tmp_path):
    with broken_copy(tmp_path) as plugin:
        (origin,) = tmp_path.glob("site-*/*.dist-info/direct_url.json")
        origin.write_text('{"url": "file:///somewhere", "dir_info": {}}')
        assert PluginSubject.find(plugin.name).source_folder is None
        origin.unlink()
        assert PluginSubject.find(plugin.name).source_folder is None
