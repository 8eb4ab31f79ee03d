import math

import pytest
import torch

from tzrec_core.errors import ConfigError
from tzrec_core.modules.numeric_embedding import (
    AutoDisEmbedding,
    AutoDisSettings,
    MLPEmbedding,
    NumericEmbeddingCollection,
    NumericEmbeddingConfig,
)


def _shapes(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in module.named_parameters()]


def test_autodis_by_hand() -> None:
    embedding = AutoDisEmbedding(1, 2, num_channels=2, temperature=0.5, keep_prob=0.8)
    with torch.no_grad():
        embedding.proj_w.copy_(torch.tensor([[1.0, -2.0]]))
        embedding.proj_m.copy_(torch.tensor([[[0.5, 10.0], [0.25, 0.0]]]))
        embedding.meta_emb.copy_(torch.tensor([[[1.0, 0.0], [0.0, 4.0]]]))
    # x = 2: w x = (2, -4), h = (2, -0.04); M h = (1 - 0.4, 0.5); + 0.8 h = (2.2, 0.468); / 0.5 = (4.4, 0.936)
    first = 1 / (1 + math.exp(0.936 - 4.4))
    out = embedding(torch.tensor([[2.0]]))
    assert out.shape == (1, 1, 2)
    assert out.flatten().tolist() == pytest.approx([first, 4 * (1 - first)], rel=1e-5)


def test_autodis_features_do_not_mix() -> None:
    torch.manual_seed(0)
    embedding = AutoDisEmbedding(3, 4, num_channels=5).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    for n in range(3):
        h = torch.nn.functional.leaky_relu(x[:, n, None] * embedding.proj_w[n])
        scores = torch.stack([embedding.proj_m[n] @ row for row in h]) + 0.8 * h
        expected = torch.softmax(scores / 0.1, dim=1) @ embedding.meta_emb[n]
        torch.testing.assert_close(embedding(x)[:, n], expected)


def test_autodis_parameters_have_the_order_of_torcheasyrec() -> None:
    assert _shapes(AutoDisEmbedding(3, 4, num_channels=5)) == [
        ("meta_emb", (3, 5, 4)),
        ("proj_w", (3, 5)),
        ("proj_m", (3, 5, 5)),
    ]


def test_a_linear_embedding_scales_one_vector_per_feature() -> None:
    embedding = MLPEmbedding(2, 3)
    assert _shapes(embedding) == [("proj_w", (2, 3))]
    with torch.no_grad():
        embedding.proj_w.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    out = embedding(torch.tensor([[2.0, -1.0]]))
    assert out.tolist() == [[[2.0, 4.0, 6.0], [-4.0, -5.0, -6.0]]]


def test_a_linear_embedding_of_several_values_is_a_matrix() -> None:
    embedding = MLPEmbedding(1, 3, value_dim=2)
    assert _shapes(embedding) == [("proj_w", (2, 3))]
    with torch.no_grad():
        embedding.proj_w.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert embedding(torch.tensor([[2.0, -1.0]])).tolist() == [[[-2.0, -1.0, 0.0]]]


def _configs() -> list[NumericEmbeddingConfig]:
    return [
        NumericEmbeddingConfig("price", 1, 4, AutoDisSettings(3)),
        NumericEmbeddingConfig("ctr", 1, 4),
        NumericEmbeddingConfig("age", 1, 4, AutoDisSettings(3, temperature=0.1, keep_prob=0.8)),
        NumericEmbeddingConfig("geo", 2, 4),
        NumericEmbeddingConfig("time", 2, 4),
        NumericEmbeddingConfig("cvr", 1, 4),
        NumericEmbeddingConfig("wide_cvr", 1, 8),
        NumericEmbeddingConfig("hot", 1, 4, AutoDisSettings(3, temperature=1.0)),
        NumericEmbeddingConfig("wide_hot", 1, 8, AutoDisSettings(3, temperature=1.0)),
    ]


def test_equal_settings_share_a_module() -> None:
    collection = NumericEmbeddingCollection(_configs())
    assert [[shape for _, shape in _shapes(module)] for module in collection.embeddings] == [
        [(2, 3, 4), (2, 3), (2, 3, 3)],  # price, age
        [(2, 4)],  # ctr, cvr
        [(2, 4)],  # geo
        [(2, 4)],  # time
        [(1, 8)],  # wide_cvr
        [(1, 3, 4), (1, 3), (1, 3, 3)],  # hot
        [(1, 3, 8), (1, 3), (1, 3, 3)],  # wide_hot
    ]


def test_merged_features_give_what_single_modules_would() -> None:
    torch.manual_seed(0)
    configs = _configs()
    collection = NumericEmbeddingCollection(configs)
    dense = {c.name: torch.randn(5, c.value_dim) for c in configs}
    out = collection(dense | {"unused": torch.zeros(5, 1)})
    assert list(out) == [c.name for c in configs]
    assert [tuple(v.shape) for v in out.values()] == [(5, c.embedding_dim) for c in configs]

    single = AutoDisEmbedding(1, 4, 3)
    merged = collection.embeddings[0]
    with torch.no_grad():
        for name, parameter in single.named_parameters():
            parameter.copy_(getattr(merged, name)[1:])
    torch.testing.assert_close(out["age"], single(dense["age"])[:, 0])
    torch.testing.assert_close(out["cvr"], dense["cvr"] * collection.embeddings[1].proj_w[1])
    torch.testing.assert_close(out["time"], dense["time"] @ collection.embeddings[3].proj_w)


def test_gradients_reach_all_parameters() -> None:
    torch.manual_seed(0)
    collection = NumericEmbeddingCollection(_configs())
    dense = {c.name: torch.randn(5, c.value_dim) for c in _configs()}
    sum(v.square().sum() for v in collection(dense).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in collection.parameters())


@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_it_traces_and_scripts(batch_size: int) -> None:
    collection = NumericEmbeddingCollection(_configs())
    dense = {c.name: torch.randn(batch_size, c.value_dim) for c in _configs()}
    scripted = torch.jit.script(torch.fx.symbolic_trace(collection))
    torch.testing.assert_close(scripted(dense), collection(dense))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'geo' has value_dim = 2 and autodis.*use mlp"):
        NumericEmbeddingCollection([NumericEmbeddingConfig("geo", 2, 4, AutoDisSettings(3))])
    with pytest.raises(ConfigError, match="temperature = 0"):
        AutoDisEmbedding(1, 4, 3, temperature=0.0)
    with pytest.raises(ConfigError, match="num_channels = 0"):
        AutoDisEmbedding(1, 4, 0)
