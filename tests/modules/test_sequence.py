import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tzrec_core.errors import ConfigError
from tzrec_core.modules.mlp import MLP
from tzrec_core.modules.sequence import (
    DINEncoder,
    MultiWindowDINEncoder,
    PoolingEncoder,
    SelfAttentionEncoder,
    SequenceEncoder,
    SimpleAttention,
)

_GOLDENS = Path(__file__).parent.parent / "goldens"
_ENCODERS = {
    "din": (DINEncoder, {"attn_mlp": {"hidden_units": [5], "activation": "Dice"}}),
    "din_bn": (DINEncoder, {"attn_mlp": {"hidden_units": [5], "use_bn": True}, "max_seq_length": 2}),
    "simple": (SimpleAttention, {}),
    "mean": (PoolingEncoder, {"pooling_type": "mean"}),
    "sum": (PoolingEncoder, {"pooling_type": "sum", "max_seq_length": 2}),
    "self_attention": (SelfAttentionEncoder, {"multihead_attn_dim": 8, "num_heads": 2}),
    "multi_window": (MultiWindowDINEncoder, {"attn_mlp": {"hidden_units": [5]}, "windows_len": [1, 2]}),
}


def _create(key: str) -> SequenceEncoder:
    torch.manual_seed(0)
    encoder, kwargs = _ENCODERS[key]
    return encoder(sequence_dim=4, query_dim=4, input="seq", name="enc", **kwargs)


def _embedded(lengths: list[int], dim: int = 4, query_dim: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_steps = max(lengths, default=0)
    sequence = torch.randn(len(lengths), num_steps, dim, generator=generator)
    for row, length in enumerate(lengths):
        sequence[row, length:] = 0.0
    return {
        "seq.query": torch.randn(len(lengths), query_dim, generator=generator),
        "seq.sequence": sequence,
        "seq.sequence_length": torch.tensor(lengths, dtype=torch.int64),
    }


def _row(embedded: dict[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """The query and the steps of one row, in float64 and without padding."""
    length = int(embedded["seq.sequence_length"][row])
    return embedded["seq.query"][row].double(), embedded["seq.sequence"][row, :length].double()


# Every encoder


@pytest.mark.parametrize("key", _ENCODERS)
def test_the_output_has_the_width_it_says(key: str) -> None:
    encoder = _create(key)
    assert encoder.input() == "seq"
    assert encoder(_embedded([3, 1, 2])).shape == (3, encoder.output_dim())


@pytest.mark.parametrize("key", _ENCODERS)
def test_a_row_without_steps_gives_zeros_and_finite_gradients(key: str) -> None:
    encoder = _create(key).eval()
    embedded = _embedded([3, 0, 2])
    embedded["seq.sequence"].requires_grad_()
    out = encoder(embedded)
    encoded = out[:, : -4 if key == "multi_window" else None]
    assert encoded[1].abs().max() == 0
    out.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert torch.isfinite(embedded["seq.sequence"].grad).all()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("key", _ENCODERS)
def test_a_batch_without_any_step_gives_zeros(key: str, train: bool) -> None:
    encoder = _create(key).train(train)
    embedded = _embedded([0, 0, 0])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = encoder(embedded)
        assert out.shape == (3, encoder.output_dim())
        assert out[:, : -4 if key == "multi_window" else None].abs().max() == 0


@pytest.mark.parametrize("key", _ENCODERS)
def test_padding_does_not_change_the_output(key: str) -> None:
    encoder = _create(key).eval()
    short = _embedded([2, 1])
    longer = {**short, "seq.sequence": nn.functional.pad(short["seq.sequence"], (0, 0, 0, 3))}
    torch.testing.assert_close(encoder(longer), encoder(short))


@pytest.mark.parametrize("key", _ENCODERS)
def test_gradients_reach_the_sequence_and_all_parameters(key: str) -> None:
    encoder = _create(key)
    embedded = _embedded([3, 1, 2])
    embedded["seq.sequence"].requires_grad_()
    encoder(embedded).square().sum().backward()
    assert embedded["seq.sequence"].grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("key", _ENCODERS)
def test_it_traces_and_scripts_at_any_size(key: str) -> None:
    encoder = _create(key).eval()
    scripted = torch.jit.script(torch.fx.symbolic_trace(encoder))
    for lengths in ([3, 1, 0, 2], [1], [0, 0], [7, 4]):
        embedded = _embedded(lengths)
        torch.testing.assert_close(scripted(embedded), encoder(embedded))


@pytest.mark.parametrize("key", ["din_bn", "self_attention", "multi_window"])
def test_one_exported_graph_serves_every_size(key: str) -> None:
    encoder = _create(key).eval()
    rows, steps = torch.export.Dim("rows", min=1), torch.export.Dim("steps", min=0)
    shapes = {
        "seq.query": {0: rows},
        "seq.sequence": {0: rows, 1: steps},
        "seq.sequence_length": {0: rows},
    }
    exported = torch.export.export(encoder, (_embedded([3, 1, 5]),), dynamic_shapes=(shapes,)).module()
    for lengths in ([1], [0], [7, 0, 2, 1]):
        embedded = _embedded(lengths)
        torch.testing.assert_close(exported(embedded), encoder(embedded))


@pytest.mark.parametrize("key", ["din", "mean", "self_attention", "simple"])
def test_max_seq_length_keeps_the_first_steps(key: str) -> None:
    whole = _create(key).eval()
    encoder, kwargs = _ENCODERS[key]
    cut = encoder(sequence_dim=4, query_dim=4, input="seq", max_seq_length=2, **kwargs).eval()
    cut.load_state_dict(whole.state_dict())
    long = _embedded([5, 2, 0])
    first = {
        "seq.query": long["seq.query"],
        "seq.sequence": long["seq.sequence"][:, :2],
        "seq.sequence_length": torch.tensor([2, 2, 0]),
    }
    expected = whole(first)
    if key == "self_attention":  # the divisor stays the whole length
        expected = expected * torch.tensor([[2 / 5], [1.0], [1.0]])
    torch.testing.assert_close(cut(long), expected)


@pytest.mark.parametrize("key", ["din", "simple"])
def test_half_precision_survives_a_row_without_steps(key: str) -> None:
    encoder = _create(key).half().eval()
    embedded = {k: v.half() if v.is_floating_point() else v for k, v in _embedded([2, 0]).items()}
    out = encoder(embedded)
    assert torch.isfinite(out).all()
    assert out[1].abs().max() == 0


# DIN


def test_din_compares_query_step_difference_and_product() -> None:
    encoder = DINEncoder(1, 1, "seq", {"hidden_units": [1], "activation": ""})
    with torch.no_grad():
        encoder.mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
        encoder.mlp.mlp[0].perceptron[0].bias.fill_(0.0)
        encoder.linear.weight.fill_(0.001)
        encoder.linear.bias.fill_(7.0)
    embedded = {
        "seq.query": torch.tensor([[2.0]]),
        "seq.sequence": torch.tensor([[[3.0], [1.0], [0.0]]]),
        "seq.sequence_length": torch.tensor([2]),
    }
    # step 3: 2 + 30 + 100 (2 - 3) + 6000 = 5932; step 1: 2 + 10 + 100 + 2000 = 2112; the bias cancels
    first = 1 / (1 + math.exp(2.112 - 5.932))
    assert encoder(embedded).item() == pytest.approx(3 * first + 1 * (1 - first), rel=1e-5)


def test_din_fills_a_narrow_query_up_with_zeros() -> None:
    torch.manual_seed(0)
    mlp = {"hidden_units": [5]}
    narrow, wide = DINEncoder(4, 3, "seq", mlp), DINEncoder(4, 4, "seq", mlp)
    wide.load_state_dict(narrow.state_dict())
    embedded = _embedded([3, 1], query_dim=3)
    filled = {**embedded, "seq.query": torch.cat([embedded["seq.query"], torch.zeros(2, 1)], dim=1)}
    torch.testing.assert_close(narrow(embedded), wide(filled))


# Simple attention and pooling


def test_simple_attention_by_hand() -> None:
    embedded = {
        "seq.query": torch.tensor([[1.0, 0.0]]),
        "seq.sequence": torch.tensor([[[math.log(3.0), 4.0], [0.0, 8.0], [0.0, 0.0]]]),
        "seq.sequence_length": torch.tensor([2]),
    }
    out = SimpleAttention(2, 2, "seq")(embedded)
    assert out[0].tolist() == pytest.approx([0.75 * math.log(3.0), 0.75 * 4 + 0.25 * 8])


def test_pooling_by_hand() -> None:
    embedded = {
        "seq.sequence": torch.tensor([[[1.0], [2.0], [6.0]], [[5.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]]),
        "seq.sequence_length": torch.tensor([3, 1, 0]),
    }
    assert PoolingEncoder(1, 0, "seq", "mean")(embedded).tolist() == [[3.0], [5.0], [0.0]]
    assert PoolingEncoder(1, 0, "seq", "sum")(embedded).tolist() == [[9.0], [5.0], [0.0]]
    assert PoolingEncoder(1, 0, "seq", "mean", max_seq_length=2)(embedded).tolist() == [[1.5], [5.0], [0.0]]


# Self attention


def test_self_attention_equals_a_loop_over_rows_and_heads() -> None:
    encoder = _create("self_attention").double().train()
    embedded = _embedded([3, 0, 1])
    attention = encoder.multihead_attn
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    for row in range(3):
        _, steps = _row(embedded, row)
        if len(steps) == 0:
            continue
        q, k, v = (
            layer(steps) @ weight.T + bias
            for layer, weight, bias in zip((encoder.query, encoder.key, encoder.value), weights, biases)
        )
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            heads.append(torch.softmax(q[:, head] @ k[:, head].T / 2.0, dim=1) @ v[:, head])
        expected = attention.out_proj(torch.cat(heads, dim=1)).mean(dim=0)
        out = encoder({key: x.double() if x.is_floating_point() else x for key, x in embedded.items()})
        torch.testing.assert_close(out[row], expected)
        q, k, v = encoder.query(steps), encoder.key(steps), encoder.value(steps)
        torch.testing.assert_close(attention(q, k, v)[0].mean(dim=0), expected)


def test_self_attention_in_eval_and_in_training_agree_without_dropout() -> None:
    encoder = _create("self_attention")
    embedded = _embedded([3, 0, 1])
    trained = encoder.train()(embedded)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(embedded), trained)


def test_self_attention_parameter_names() -> None:
    assert [name for name, _ in _create("self_attention").named_parameters()] == [
        "query.weight",
        "query.bias",
        "key.weight",
        "key.bias",
        "value.weight",
        "value.bias",
        "multihead_attn.in_proj_weight",
        "multihead_attn.in_proj_bias",
        "multihead_attn.out_proj.weight",
        "multihead_attn.out_proj.bias",
    ]


# Multi window DIN


def _unit_weights(encoder: MultiWindowDINEncoder, on_query: float) -> None:
    """Make the weight of a step s + 10 q s + on_query q, through a PReLU with slope 0.5."""
    with torch.no_grad():
        encoder.mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0, 10.0, on_query]]))
        encoder.mlp.mlp[0].perceptron[0].bias.fill_(0.0)
        encoder.linear.weight.fill_(1.0)
        encoder.linear.bias.fill_(0.0)
        encoder.active.weight.fill_(0.5)


def test_multi_window_averages_the_valid_steps_of_each_window() -> None:
    encoder = MultiWindowDINEncoder(1, 1, "seq", {"hidden_units": [1], "activation": ""}, [1, 2, 4])
    _unit_weights(encoder, on_query=0.0)
    embedded = {
        "seq.query": torch.tensor([[0.1], [-0.3]]),
        "seq.sequence": torch.tensor([[[1.0], [2.0], [3.0], [4.0]], [[1.0], [2.0], [0.0], [0.0]]]),
        "seq.sequence_length": torch.tensor([4, 2]),
    }
    # weights are 2 s, and -2 s -> -s; a step counts as weight * s
    row_1 = [2 * 1, (2 * 4 + 2 * 9) / 2, 2 * 16, 0.1]
    row_2 = [-1 * 1, -4.0, 0.0, -0.3]
    out = encoder(embedded)
    assert out.flatten().tolist() == pytest.approx([*row_1, *row_2], rel=1e-5)


def test_multi_window_cuts_steps_beyond_the_last_window_and_ignores_padded_ones() -> None:
    encoder = MultiWindowDINEncoder(1, 1, "seq", {"hidden_units": [1], "activation": ""}, [1, 1])
    _unit_weights(encoder, on_query=1.0)
    embedded = {
        "seq.query": torch.tensor([[1.0], [1.0]]),
        "seq.sequence": torch.tensor([[[1.0], [2.0], [50.0]], [[1.0], [0.0], [0.0]]]),
        "seq.sequence_length": torch.tensor([3, 1]),
    }
    # weight 11 s + 1
    assert encoder(embedded).tolist() == [[12.0, 46.0, 1.0], [12.0, 0.0, 1.0]]


def test_multi_window_fills_a_narrow_query_up_with_zeros() -> None:
    encoder = MultiWindowDINEncoder(4, 3, "seq", {"hidden_units": [5]}, [1, 2])
    embedded = _embedded([3, 1], query_dim=3)
    out = encoder(embedded)
    assert out.shape == (2, 12)
    assert torch.equal(out[:, 8:11], embedded["seq.query"])
    assert out[:, 11].tolist() == [0.0, 0.0]


# Settings


@pytest.mark.parametrize(
    ("encoder", "kwargs", "words"),
    [
        (DINEncoder, {"query_dim": 5, "attn_mlp": {"hidden_units": [2]}}, ["5 wide", "sequence", "4"]),
        (DINEncoder, {"query_dim": 0, "attn_mlp": {"hidden_units": [2]}}, ["no query", "add a feature"]),
        (DINEncoder, {"attn_mlp": {"hidden_units": [2], "activation": "nn.Reul"}}, ["nn.Reul", "nn.ReLU"]),
        (DINEncoder, {"attn_mlp": {"hidden_units": [2]}, "max_seq_length": -1}, ["max_seq_length = -1"]),
        (SimpleAttention, {"query_dim": 3}, ["equally wide", "3 wide", "sequence 4"]),
        (SimpleAttention, {"query_dim": 5}, ["5 wide"]),
        (PoolingEncoder, {"pooling_type": "men"}, ["'men'", "mean, sum", "Did you mean 'mean'"]),
        (SelfAttentionEncoder, {"multihead_attn_dim": 10, "num_heads": 4}, ["10", "num_heads = 4"]),
        (SelfAttentionEncoder, {"dropout": 2.0}, ["dropout = 2"]),
        (
            MultiWindowDINEncoder,
            {"query_dim": 5, "attn_mlp": {"hidden_units": [2]}, "windows_len": [1]},
            ["5 wide"],
        ),
        (MultiWindowDINEncoder, {"attn_mlp": {"hidden_units": [2]}, "windows_len": []}, ["windows_len = []"]),
        (
            MultiWindowDINEncoder,
            {"attn_mlp": {"hidden_units": [2]}, "windows_len": [2, 0]},
            ["windows_len = [2, 0]", "1 or more"],
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(encoder: type, kwargs: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        encoder(**{"sequence_dim": 4, "query_dim": 4, "input": "clicks", **kwargs})
    in_mlp = "Reul" in str(kwargs)
    for word in words if in_mlp else ["'clicks'", *words]:
        assert word in str(caught.value)


# Goldens: the whole dense part of a model on what the golden's EmbeddingGroup emits


class _MultiTowerDIN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"deep": MLP(25, [8, 4])})
        attn_mlp = {"hidden_units": [8, 4], "activation": "Dice"}
        self.din_towers = nn.ModuleList([DINEncoder(17, 17, "seq", attn_mlp)])
        self.final_mlp = MLP(21, [6])
        self.output_mlp = nn.Linear(6, 1)

    def forward(self, grouped: dict[str, Tensor]) -> Tensor:
        towers = [self.towers["deep"](grouped["deep"]), self.din_towers[0](grouped)]
        return self.output_mlp(self.final_mlp(torch.cat(towers, dim=1))).squeeze(1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())


class _TDM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        attn_mlp = {"hidden_units": [6, 4], "activation": "nn.PReLU"}
        self.multiwindow_din = MultiWindowDINEncoder(16, 16, "seq", attn_mlp, [1, 2, 4])
        self.deep_mlp = MLP(82, [8, 4])
        self.output_mlp = nn.Linear(4, 2)

    def forward(self, grouped: dict[str, Tensor]) -> Tensor:
        deep = torch.cat([self.multiwindow_din(grouped), grouped["user"], grouped["item"]], dim=1)
        return self.output_mlp(self.deep_mlp(deep))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels)


def _tensor(stored: dict) -> Tensor:
    return torch.tensor(stored["values"], dtype=getattr(torch, stored["dtype"])).view(stored["shape"])


def _fill(parameter: nn.Parameter, k: int) -> None:
    index = torch.arange(parameter.numel(), dtype=torch.float64)
    phase = 0.11 * parameter.dim() + 0.013 * parameter.shape[0] + 0.5 * k
    with torch.no_grad():
        parameter.copy_((0.3 * torch.sin(0.37 * index + phase)).view(parameter.shape))


@pytest.mark.parametrize("fill", ["", "_ordered"])
@pytest.mark.parametrize(("case", "model_class"), [("multi_tower_din", _MultiTowerDIN), ("tdm_softmax", _TDM)])
def test_goldens(case: str, model_class: type, fill: str) -> None:
    golden = json.loads((_GOLDENS / f"{case}.json").read_text())
    ordered = [p for p in golden["params"]["ordered"] if not p[0].startswith("embedding_group.")]
    model = model_class()
    assert [[name, list(p.shape)] for name, p in model.named_parameters()] == [p[:2] for p in ordered]
    for parameter, (_, _, k) in zip(model.parameters(), ordered):
        _fill(parameter, k if fill else 0)
    grouped = {k: _tensor(v) for k, v in golden[f"embedding_groups{fill}"]["embedding_group"].items()}
    labels = torch.tensor(golden["batch"]["labels"]["label"]["values"])
    for mode in ("eval", "train"):
        expected = golden[f"{mode}{fill}"]
        model.train(mode == "train").zero_grad()
        logits = model(grouped)
        torch.testing.assert_close(logits, _tensor(expected["predictions"]["logits"]), rtol=2e-5, atol=2e-6)
        loss = model.loss(logits, labels)
        assert loss.item() == pytest.approx(expected["total_loss"], rel=2e-5)
        loss.backward()
        by_shape: dict[str, float] = {}
        for parameter in model.parameters():
            shape = "x".join(str(size) for size in parameter.shape)
            by_shape[shape] = by_shape.get(shape, 0.0) + parameter.grad.double().square().sum().item()
        for shape, total in by_shape.items():
            assert total == pytest.approx(expected["grad_sq_by_shape"][shape], rel=1e-3), shape
