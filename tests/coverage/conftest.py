import pytest
import torch

from tzrec_core.config import parse_config
from tzrec_core.data import DataParser
from tzrec_core.features import create_features
from tzrec_core.models import create_model
from tzrec_core.modules import EmbeddingGroup


@pytest.fixture
def features_of():
    """Features of the text of a config's parts."""

    def make(text):
        config = parse_config(text, partial=True)
        return create_features(config.feature_configs, config.data_config)

    return make


@pytest.fixture
def embed():
    """An EmbeddingGroup of a config's text, and its output for columns of encoded values."""

    def make(text, columns=None):
        torch.manual_seed(0)
        config = parse_config(text, partial=True)
        features = create_features(config.feature_configs, config.data_config)
        module = EmbeddingGroup(features, config.model_config.feature_groups)
        parser = DataParser(features)
        return module, (None if columns is None else module(parser.to_batch(parser.parse(columns))))

    return make


@pytest.fixture
def model_of():
    """The model of a config's text, in eval mode; `ready` = with its losses and metrics."""

    def make(text, *, ready=True):
        torch.manual_seed(0)
        config = parse_config(text, partial=True)
        features = create_features(config.feature_configs, config.data_config)
        labels = list(config.data_config.label_fields) or ["label"]
        model = create_model(config.model_config, features, labels, list(config.data_config.sample_weight_fields))
        if ready:
            model.init_loss()
            model.init_metric()
        return model.eval()

    return make
