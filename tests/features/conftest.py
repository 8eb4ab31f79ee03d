import pytest
from google.protobuf import text_format

from tzrec_core.features import create_features
from tzrec_core.protos import data_pb2, pipeline_pb2


def _data_config(text):
    return text_format.Parse(text, data_pb2.DataConfig())


@pytest.fixture(scope="session")
def make_features():
    """Features of the bodies of feature_configs entries, each starting on a line of its own."""

    def make(configs, data_config=""):
        entries = [""]
        for line in configs.strip().splitlines():
            if entries[-1].count("{") == entries[-1].count("}") and entries[-1]:
                entries.append("")
            entries[-1] += line
        message = pipeline_pb2.EasyRecConfig()
        text_format.Parse("\n".join(f"feature_configs {{ {entry} }}" for entry in entries), message)
        return create_features(message.feature_configs, _data_config(data_config))

    return make
