import io
from math import log
from pathlib import Path

import pytest
import torch
from torchrec.fx import Tracer

from tzrec_core.config import parse_config
from tzrec_core.errors import ConfigError
from tzrec_core.features import create_features
from tzrec_core.models import ScriptWrapper, create_model
from tzrec_core.testing.golden import assert_model_golden, golden_batch, golden_config_text, load_golden

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.json"))
FEATURES = """
data_config { label_fields: "label" }
feature_configs { id_feature { feature_name: "a" expression: "user:a" num_buckets: 4 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "b" expression: "user:b" num_buckets: 4 embedding_dim: 3 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks" sequence_length: 9
  num_buckets: 4 embedding_dim: 2 } }
"""
DIN = """sequence_groups { feature_names: "a" feature_names: "clicks" }
  sequence_encoders { din_encoder { attn_mlp { hidden_units: 4 } } }"""
FINAL = "final { hidden_units: 3 }"
BCE = "losses { binary_cross_entropy {} }"


def group(name, kind, names, more=""):
    listed = " ".join(f'feature_names: "{feature}"' for feature in names.split())
    return f'feature_groups {{ group_name: "{name}" group_type: {kind} {listed} {more} }}'


WIDE = group("wide", "WIDE", "a b")
DEEP = group("deep", "DEEP", "a price")


def parse(*groups, settings="", body=BCE, validate=False):
    model = f"wide_and_deep {{ deep {{ hidden_units: 3 }} {settings} }}"
    text = f"{FEATURES} model_config {{ {' '.join(groups)} {model} {body} }}"
    return parse_config(text, partial=True, validate=validate)


def build(*groups, **kwargs):
    config = parse(*groups, **kwargs)
    torch.manual_seed(0)
    return create_model(config.model_config, create_features(config.feature_configs), ["label"]).eval()


def rows(a, b, clicks=None):
    """A batch from rows of ids; price counts up."""
    n = len(a)
    columns = {"a": a, "b": b, "clicks": clicks or [[]] * n}
    jagged = {
        name: {"lengths": [len(row) for row in rows], "values": [value for row in rows for value in row]}
        for name, rows in columns.items()
    }
    return golden_batch(
        {
            "sparse": {"__BASE__": jagged},
            "dense": {"__BASE__": {"price": [[i / 2] for i in range(n)]}},
            "labels": {"label": {"values": [i % 2 for i in range(n)], "dtype": "int64"}},
        }
    )


BATCH = rows([[0], [1, 2]], [[2], []])


def table(model, name):
    (found,) = [p for n, p in model.named_parameters() if n.endswith(f".{name}.weight")]
    return found


def by_hand(model):
    """Wide weights 1, 2, 4, 8; deep = relu([a0, price, a0 - price]) for the first number a0 of a's embedding."""
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        table(model, "a_emb_wide")[:, 0] = weights
        table(model, "b_emb_wide")[:, 0] = weights * 10
        table(model, "a_emb")[:, 0] = torch.tensor([3.0, -1.0, 0.5, 0.0])
        model.deep_mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [1.0, 0, -1.0]]))
    return model


def logits(model, batch=BATCH):
    with torch.no_grad():
        return model.predict(batch)["logits"]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_computes_the_numbers_of_torcheasyrec(path):
    golden = load_golden(path)
    config = parse_config(golden_config_text(golden), partial=True)
    features = create_features(config.feature_configs, config.data_config)
    assert_model_golden(
        golden,
        lambda: create_model(config.model_config, features, golden["labels"], golden["sample_weights"]),
        features=features,
    )


# ---- the paper's equation 3, by hand


def test_the_wide_part_is_the_sum_of_the_weights_of_a_rows_ids():
    assert logits(by_hand(build(WIDE, DEEP))).tolist() == [1 + 40, 2 + 4]


def test_without_final_wide_and_a_linear_layer_on_deep_are_summed():
    model = by_hand(build(WIDE, DEEP))
    with torch.no_grad():
        model.output_mlp.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        model.output_mlp.bias.fill_(0.25)
    # deep: row 0 has a0 = 3, price 0 -> [3, 0, 3]; row 1 has a0 = -1 + 0.5, price 0.5 -> [0, 0.5, 0]
    assert logits(model).tolist() == [41 + 3 + 300 + 0.25, 6 + 5 + 0.25]


def test_with_final_the_sum_of_wide_and_the_deep_output_meet_in_an_mlp():
    model = by_hand(build(WIDE, DEEP, settings=FINAL))
    assert model.final_mlp.mlp[0].perceptron[0].weight.shape == (3, 1 + 3)
    with torch.no_grad():
        model.final_mlp.mlp[0].perceptron[0].weight.copy_(
            torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 1.0, 1.0], [-1.0, 0, 0, 0]])
        )
        model.output_mlp.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    assert logits(model).tolist() == [41 + 10 * 6, 6 + 10 * 0.5]


def test_the_probability_is_the_sigmoid_of_the_logit():
    model = by_hand(build(WIDE, DEEP))
    with torch.no_grad():
        model.output_mlp.bias.fill_(-6 + log(3))
        assert model.predict(BATCH)["probs"][1].item() == pytest.approx(0.75)


# ---- symmetries and limits


def test_without_wide_weights_it_is_a_deep_net_and_without_deep_weights_a_linear_model():
    model = build(WIDE, DEEP)
    with torch.no_grad():
        groups = model.embedding_group(BATCH)
        deep = model.output_mlp(model.deep_mlp(groups["deep"])).squeeze(1)
        wide = groups["wide"].sum(1)
        torch.testing.assert_close(logits(model), wide + deep)
        table(model, "a_emb_wide").zero_()
        table(model, "b_emb_wide").zero_()
        torch.testing.assert_close(logits(model), deep)


def test_the_order_of_the_wide_features_changes_nothing():
    expected = logits(by_hand(build(WIDE, DEEP)))
    assert logits(by_hand(build(group("wide", "WIDE", "b a"), DEEP))).tolist() == expected.tolist()


def test_wide_and_deep_have_embeddings_of_their_own():
    model = build(WIDE, DEEP, settings="wide_embedding_dim: 7")
    assert table(model, "a_emb").shape == (4, 2)
    assert table(model, "a_emb_wide").shape == (4, 7)
    assert table(build(WIDE, DEEP), "b_emb_wide").shape == (4, 4)


def test_wide_init_fn_is_for_the_wide_tables():
    model = build(WIDE, DEEP, settings='wide_init_fn: "nn.init.constant_,val=0.5"')
    assert table(model, "a_emb_wide").unique().tolist() == [0.5]
    assert len(table(model, "a_emb").unique()) > 1


def test_a_row_without_ids_has_a_wide_part_of_zero():
    model = by_hand(build(WIDE, DEEP))
    assert logits(model, rows([[]], [[]])).tolist() == [0]


# ---- what does not fit


@pytest.mark.parametrize(("groups", "missing"), [([DEEP], "wide"), ([WIDE], "deep")])
def test_a_missing_group_is_named(groups, missing):
    with pytest.raises(ConfigError, match=rf"model_config.wide_and_deep needs a feature group '{missing}'"):
        parse(*groups, validate=True)
    with pytest.raises(ConfigError, match=rf"'{missing}' is not a feature group"):
        build(*groups)


def test_a_group_of_another_type_or_name_is_refused():
    with pytest.raises(ConfigError, match=r"wide_and_deep reads 'wide' as WIDE, but its group_type is DEEP"):
        parse(group("wide", "DEEP", "a b"), DEEP, validate=True)
    with pytest.raises(ConfigError, match=r"wide_and_deep does not read a group 'fm'"):
        parse(WIDE, DEEP, group("fm", "DEEP", "a"), validate=True)


def test_numbers_cannot_be_wide():
    with pytest.raises(ConfigError, match=r"WIDE and takes ids only, but 'price' is (a number|dense)"):
        build(group("wide", "WIDE", "a price"), DEEP)


# ---- training and serving


GROUPS = {"plain": (WIDE, DEEP), "sequence": (WIDE, group("deep", "DEEP", "b price", DIN))}
MANY = rows(
    a=[[i % 4] * (1 + i % 2) for i in range(7)],
    b=[[3 - i % 4, 1][: i % 3] for i in range(7)],
    clicks=[[i % 4, (i + 1) % 4, 1][: i % 4] for i in range(7)],
)
ONE = rows([[3]], [[1, 2]], [[1, 1, 3]])
EMPTY = rows([[], []], [[], []])
DROPOUT = BCE + "variational_dropout {}"


@pytest.mark.parametrize(("settings", "body"), [("", BCE), (FINAL, BCE), ("", DROPOUT)], ids=["sum", "final", "drop"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_a_scripted_file_predicts_as_the_model(groups, settings, body):
    model = build(*groups, settings=settings, body=body)
    expected = [model.predict(batch) for batch in (ONE, MANY, EMPTY)]
    wrapper = ScriptWrapper(model).eval()
    graph = Tracer(leaf_modules=["EmbeddingBagCollection", "EmbeddingCollection"]).trace(wrapper)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.fx.GraphModule(wrapper, graph)), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for batch, want in zip((ONE, MANY, EMPTY), expected):
        found = scripted(batch.to_dict(), torch.device("cpu"))
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", ["", FINAL], ids=["sum", "final"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_gradients_reach_every_parameter(groups, settings):
    model = build(*groups, settings=settings).train()
    with torch.no_grad():  # no dead ReLU
        for name, parameter in model.named_parameters():
            if "perceptron.0.bias" in name:
                parameter.fill_(5.0)
    model.init_loss()
    sum(model.loss(model.predict(MANY), MANY).values()).backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a bias before the softmax over the steps moves all of them alike
    assert [name for name in untouched if not name.endswith("seq_encoders.deep.0.linear.bias")] == []


@pytest.mark.parametrize("settings", ["", FINAL], ids=["sum", "final"])
def test_several_classes_have_a_logit_each(settings):
    body = "losses { softmax_cross_entropy {} } num_class: 3"
    assert logits(build(WIDE, DEEP, settings=settings, body=body)).shape == (2, 3)


def test_the_config_of_the_readme_sets_every_field():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    config = parse_config(readme.split("```")[1], partial=True)
    settings = config.model_config.wide_and_deep
    assert {field.name for field, _ in settings.ListFields()} == set(settings.DESCRIPTOR.fields_by_name)
