import pyarrow as pa
import pytest

from tzrec_core.errors import ConfigError
from tzrec_core.features.vocab import build_vocab, read_words


def _ids(vocab, *texts):
    return vocab.encode(pa.array(texts, pa.string())).tolist()


def test_words_count_from_2_and_unseen_ones_are_1():
    vocab = build_vocab(["a", "b"], [], "", None)
    assert _ids(vocab, "a", "b", "c", None, "") == [2, 3, 1, 1, 1]


def test_the_default_value_is_0():
    assert _ids(build_vocab(["a", "b"], [], "none", None), "none", "a", "c") == [0, 2, 1]


def test_with_a_fallback_words_count_from_0():
    assert _ids(build_vocab(["a", "b"], [], "none", 1), "a", "b", "c", "none") == [0, 1, 1, 1]


def test_given_ids_are_kept_and_may_repeat():
    assert _ids(build_vocab(["a", "b", "c"], [5, 2, 5], "", None), "c", "b", "a", "x") == [5, 2, 5, 1]


def test_a_vocabulary_without_words_knows_none():
    assert _ids(build_vocab([], [], "", None), "a") == [1]


def test_words_are_the_lines_of_a_file_without_empty_ones(tmp_path):
    (tmp_path / "words").write_bytes("a\r\nb c\n\n日本\n".encode())
    assert read_words("f", str(tmp_path / "words")) == ["a", "b c", "日本"]


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "words").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"f '.*words' cannot be read"):
        read_words("f", str(tmp_path / "words"))
