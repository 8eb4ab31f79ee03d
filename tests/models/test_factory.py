import pytest
import torch
from tzrec_toy import GROUP, Toy, toy_batch, toy_config, toy_model

from tzrec_core.config import parse_config
from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.features import create_features
from tzrec_core.models import create_model
from tzrec_core.modules import Kernel
from tzrec_core.protos import model_pb2


def create(config, **kwargs):
    return create_model(config.model_config, create_features(config.feature_configs), ["label"], **kwargs)


def test_the_config_decides_which_model_is_built():
    model = create(toy_config(model="toy { width: 7 }"))
    assert type(model) is Toy
    assert model.output.in_features == 7
    assert {module.kernel() for module in model.modules() if hasattr(module, "kernel")} == {Kernel.PYTORCH}


def test_on_meta_nothing_has_storage():
    model = create(toy_config(), device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_model_that_was_built_on_meta_can_be_filled():
    model = create(toy_config(), device="meta").to_empty(device="cpu")
    expected = toy_model()
    model.load_state_dict(expected.state_dict(), strict=False)
    torch.testing.assert_close(model.eval().predict(toy_batch()), expected.predict(toy_batch()))


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no model 'tox'. Did you mean 'toy'\?.*tzrec list-models"):
        toy_config(model="tox {}")


def test_a_config_without_a_model_says_how_to_name_one():
    config = toy_config(model="")
    with pytest.raises(ConfigError, match=r"model_config names no model; add one, such as deepfm.*list-models"):
        create(config)


def test_a_config_read_without_plugins_names_no_model():
    with pytest.raises(ConfigError, match=r"names no model"):
        create_model(model_pb2.ModelConfig(), [], ["label"])


@pytest.mark.parametrize("kernel", ["TRITON", "CUTLASS"])
def test_kernels_that_are_not_built_in_are_refused(kernel):
    with pytest.raises(ConfigError, match=rf"model_config.kernel = {kernel}: only PYTORCH"):
        create(toy_config(f"losses {{ binary_cross_entropy {{}} }} kernel: {kernel}"))


def test_a_plugin_that_offers_no_model_is_named():
    with pytest.raises(PluginError, match=r"'no_model' of tzrec-toy: tzrec_toy:NotAModel is not a subclass"):
        create(toy_config(model="no_model {}"))


def test_the_words_of_the_embedding_group_reach_the_user():
    config = toy_config(groups=GROUP.replace('"price"', '"prise"'))
    with pytest.raises(ConfigError, match=r"'prise' is not a feature. Did you mean 'price'\?"):
        create(config)


def test_the_assembled_config_travels_as_text_only():
    text = str(toy_config())
    assert parse_config(text, partial=True) == toy_config()
