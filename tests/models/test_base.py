import pytest
import torch
from tzrec_toy import FEATURES, GROUP, toy_batch, toy_config, toy_model

from tzrec_core.features import create_features
from tzrec_core.models import BaseModel

STEPS = 'feature_groups { group_name: "clicks" group_type: SEQUENCE feature_names: "clicks" feature_names: "user" }'


def test_the_plugins_message_is_the_model_config_of_the_model():
    model = toy_model(model="toy { width: 6 }")
    assert model._model_config.width == 6
    assert [group.group_name for group in model._feature_groups] == ["all"]
    assert (model._labels, model._label_name, model._num_class) == (["label"], "label", 1)


def test_forward_is_predict():
    model = toy_model()
    torch.testing.assert_close(model(toy_batch()), model.predict(toy_batch()))


def test_tables_are_told_apart_from_other_parameters_and_frozen_ones_from_those_that_train():
    frozen = FEATURES.replace('feature_name: "tags"', 'feature_name: "tags" trainable: false')
    model = toy_model(features=frozen, groups=GROUP + STEPS)
    trainable, fixed = model.sparse_parameters()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(p)].split(".")[-2] for p in trainable) == ["clicks_emb", "user_emb", "user_emb"]
    assert [names[id(p)].split(".")[-2] for p in fixed] == ["tags_emb"]


def test_features_of_groups_come_once_in_config_order_with_those_of_sequence_groups():
    deep = """feature_groups { group_name: "all" group_type: DEEP feature_names: "price" feature_names: "user"
      sequence_groups { feature_names: "user" feature_names: "clicks" } sequence_encoders { simple_attention {} } }"""
    model = toy_model(groups=deep)
    names = [feature.name for feature in model.get_features_in_feature_groups(model._feature_groups)]
    assert names == ["user", "price", "clicks"]


@pytest.mark.parametrize("name", ["predict", "loss", "update_metric", "init_loss", "init_metric"])
def test_a_base_model_leaves_the_rest_to_its_subclasses(name):
    config = toy_config()
    model = BaseModel(config.model_config, create_features(config.feature_configs), ["label"])
    arguments = {"predict": 1, "loss": 2, "update_metric": 2}.get(name, 0)
    with pytest.raises(NotImplementedError):
        getattr(model, name)(*[None] * arguments)


def test_the_end_of_training_does_nothing_by_default():
    assert toy_model().on_train_end() is None
