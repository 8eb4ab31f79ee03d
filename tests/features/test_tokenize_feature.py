import json

import pytest

from tzrec_core.errors import ConfigError

_CONFIG = 'tokenize_feature {{ feature_name: "t" expression: "user:t" embedding_dim: 4 vocab_file: "{}" {} }}'


def test_the_highest_token_sizes_the_table(make_features, tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 4}}, "added_tokens": [{"id": 9, "content": "[PAD]"}]})
    )
    (feature,) = make_features(_CONFIG.format(tmp_path / "tokenizer.json", ""))
    assert feature.num_embeddings == 10 and feature.emb_bag_config.num_embeddings == 10


def test_a_unigram_vocabulary_is_a_list(make_features, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}))
    (feature,) = make_features(_CONFIG.format(tmp_path / "tokenizer.json", ""))
    assert feature.num_embeddings == 2


@pytest.mark.parametrize("content", ["not json", "{}", "[1]"])
def test_a_file_that_is_no_tokenizer_is_named(make_features, tmp_path, content):
    (tmp_path / "words").write_text(content)
    (feature,) = make_features(_CONFIG.format(tmp_path / "words", ""))
    with pytest.raises(ConfigError, match=r"'t': vocab_file .*words' is not a tokenizer.json"):
        _ = feature.num_embeddings


def test_other_tokenizers_are_refused(make_features):
    with pytest.raises(ConfigError, match="tokenizer_type 'sentencepiece' is not supported"):
        make_features(_CONFIG.format("x", 'tokenizer_type: "sentencepiece"'))


def test_tokens_as_a_sequence_are_refused(make_features):
    with pytest.raises(ConfigError, match="tokens_as_sequence: a sequence of tokens is not supported yet"):
        make_features(_CONFIG.format("x", "tokens_as_sequence: true"))
