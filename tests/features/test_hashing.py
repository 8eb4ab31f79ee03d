import pyarrow as pa
import pytest
import xxhash

from tzrec_core.features.hashing import hash_texts

_TEXTS = ["", "a", "user_1", "日本語", "x" * 31, "x" * 32, "x" * 33, "é" * 100, "0", "-7", "a\x1db"]


@pytest.mark.parametrize("num_buckets", [1, 2, 33, 1_000_003, 2**40])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_ids_are_the_published_xxh64_modulo_the_buckets(num_buckets, kind):
    expected = [xxhash.xxh64_intdigest(text.encode()) % num_buckets for text in _TEXTS]
    assert hash_texts(pa.array(_TEXTS, kind), num_buckets).tolist() == expected


def test_hashes_of_known_texts_never_change():
    assert hash_texts(pa.array(["", "a"]), 2**62).tolist() == [
        0xEF46DB3751D8E999 % 2**62,  # both from the specification's test vectors
        0xD24EC4F1A98C6E5B % 2**62,
    ]


def test_no_texts_give_no_ids():
    assert hash_texts(pa.array([], pa.string()), 5).tolist() == []
