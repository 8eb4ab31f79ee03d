import io
from itertools import combinations
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
feature_configs { id_feature { feature_name: "b" expression: "user:b" num_buckets: 4 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "c" expression: "item:c" num_buckets: 4 embedding_dim: 2 } }
feature_configs { id_feature { feature_name: "wider" expression: "item:wider" num_buckets: 4 embedding_dim: 3 } }
feature_configs { raw_feature { feature_name: "price" expression: "item:price" } }
feature_configs { sequence_id_feature { feature_name: "clicks" expression: "user:clicks" sequence_length: 9
  num_buckets: 4 embedding_dim: 2 } }
"""
DIN = """sequence_groups { feature_names: "c" feature_names: "clicks" }
  sequence_encoders { din_encoder { attn_mlp { hidden_units: 4 } } }"""
FINAL = "final { hidden_units: 3 }"


def group(name, kind, names, more=""):
    listed = " ".join(f'feature_names: "{feature}"' for feature in names.split())
    return f'feature_groups {{ group_name: "{name}" group_type: {kind} {listed} {more} }}'


WIDE = group("wide", "WIDE", "a b c")
DEEP = group("deep", "DEEP", "a b c")


def parse(*groups, settings="", body="losses { binary_cross_entropy {} }", validate=False):
    text = f"{FEATURES} model_config {{ {' '.join(groups)} deepfm {{ deep {{ hidden_units: 3 }} {settings} }} {body} }}"
    return parse_config(text, partial=True, validate=validate)


def build(*groups, **kwargs):
    config = parse(*groups, **kwargs)
    torch.manual_seed(0)
    return create_model(config.model_config, create_features(config.feature_configs), ["label"]).eval()


def rows(**columns):
    """A batch from rows of ids; price counts up."""
    n = len(columns["a"])
    jagged = {
        name: {"lengths": [len(row) for row in rows], "values": [value for row in rows for value in row]}
        for name, rows in {"wider": [[]] * n, "clicks": [[]] * n, **columns}.items()
    }
    return golden_batch(
        {
            "sparse": {"__BASE__": jagged},
            "dense": {"__BASE__": {"price": [[i / 2] for i in range(n)]}},
            "labels": {"label": {"values": [i % 2 for i in range(n)], "dtype": "int64"}},
        }
    )


BATCH = rows(a=[[0], [1]], b=[[2], [3]], c=[[1], [0, 1]])


def table(model, name):
    (found,) = [p for n, p in model.named_parameters() if n.endswith(f".{name}.weight")]
    return found


def fill(model, **tables):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, values in tables.items():
            table(model, name).copy_(torch.tensor(values))
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


# ---- the paper's equations, by hand


def test_the_first_order_term_is_the_sum_of_the_weights_of_a_rows_ids():
    weights = [[1.0, 0, 0, 0], [2.0, 0, 0, 0], [4.0, 0, 0, 0], [8.0, 0, 0, 0]]
    model = fill(build(WIDE, DEEP), a_emb_wide=weights, b_emb_wide=weights, c_emb_wide=weights)
    assert logits(model).tolist() == [1 + 4 + 2, 2 + 8 + (1 + 2)]


def test_all_numbers_of_a_wide_embedding_count():
    model = build(WIDE, DEEP, settings="wide_embedding_dim: 2")
    assert table(model, "a_emb_wide").shape == (4, 2)
    fill(model, a_emb_wide=[[1.0, 10.0], [2.0, 20.0], [0, 0], [0, 0]])
    assert logits(model).tolist() == [11, 22]


def test_the_second_order_term_is_the_sum_of_the_products_of_all_pairs():
    a, b, c = [[1.0, 2.0]] * 4, [[3.0, -1.0]] * 4, [[-2.0, 4.0]] * 4
    model = fill(build(WIDE, DEEP), a_emb=a, b_emb=b, c_emb=c)
    # <a,b> + <a,c> + <b,c> = (3 - 2) + (-2 + 8) + (-6 - 4); the second row has c twice: 1 + 2*6 + 2*(-10)
    assert logits(model).tolist() == [-3, -7]


def test_the_second_order_term_equals_the_double_loop_over_pairs():
    model = build(group("wide", "WIDE", "a b c"), group("fm", "DEEP", "a b c"), group("deep", "DEEP", "price"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_wide" in name or name.startswith(("deep_mlp", "output_mlp")):
                parameter.zero_()
        fields = model.embedding_group(BATCH)["fm"].double().reshape(2, 3, 2)
    expected = sum((fields[:, i] * fields[:, j]).sum(1) for i, j in combinations(range(3), 2))
    torch.testing.assert_close(logits(model).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_deep_part_is_a_linear_layer_on_the_mlp():
    model = fill(build(WIDE, group("fm", "DEEP", "a b"), group("deep", "DEEP", "price")))
    with torch.no_grad():
        model.deep_mlp.mlp[0].perceptron[0].weight.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
        model.deep_mlp.mlp[0].perceptron[0].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        model.output_mlp.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
        model.output_mlp.bias.fill_(0.5)
    # relu(price * [1, 2, -1] + [1, 0, 0]) of price 0 and 0.5, then [1, 10, 100] and 0.5
    assert logits(model).tolist() == [1.5, 1.5 + 10 + 0.5]


def test_without_final_the_three_parts_are_summed_and_with_it_they_meet_in_an_mlp():
    a, b, c = [[1.0, 2.0]] * 4, [[3.0, -1.0]] * 4, [[-2.0, 4.0]] * 4
    wide = [[5.0, 0, 0, 0]] * 4
    summed = fill(build(WIDE, DEEP), a_emb=a, b_emb=b, c_emb=c, a_emb_wide=wide)
    assert logits(summed).tolist()[0] == 5 - 3
    met = fill(build(WIDE, DEEP, settings=FINAL), a_emb=a, b_emb=b, c_emb=c, a_emb_wide=wide)
    assert met.final_mlp.mlp[0].perceptron[0].weight.shape == (3, 1 + 2 + 3)  # wide, fm, deep
    with torch.no_grad():
        met.final_mlp.mlp[0].perceptron[0].weight[0] = torch.tensor([1.0, -10.0, 100.0, 0, 0, 0])
        met.output_mlp.weight[0, 0] = 1
    # per dimension the products sum to 3 - 2 - 6 = -5 and -2 + 8 - 4 = 2
    assert logits(met).tolist()[0] == 5 + 50 + 200


# ---- symmetries and limits


def test_without_embeddings_it_is_a_linear_model():
    model = build(WIDE, DEEP)
    with torch.no_grad():
        for name in ("a_emb", "b_emb", "c_emb"):
            table(model, name).zero_()
        expected = model.embedding_group(BATCH)["wide"].sum(1) + model.output_mlp(
            model.deep_mlp(torch.zeros(1, 6))
        ).squeeze(1)
    torch.testing.assert_close(logits(model), expected)


def test_the_order_of_the_fm_features_changes_nothing():
    found = []
    for names in ("a b c", "c a b", "b c a"):
        model = build(WIDE, group("fm", "DEEP", names), group("deep", "DEEP", "price"))
        values = torch.linspace(-1, 1, 8).reshape(4, 2)
        fill(model, a_emb=values.tolist(), b_emb=(values * 2).tolist(), c_emb=(values + 3).tolist())
        found.append(logits(model))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_fm_and_deep_share_their_embeddings():
    model = build(WIDE, group("fm", "DEEP", "a b"), DEEP)
    names = [name.split(".")[-2] for name, _ in model.named_parameters() if "emb_impls" in name]
    assert sorted(names) == ["a_emb", "a_emb_wide", "b_emb", "b_emb_wide", "c_emb", "c_emb_wide"]


def test_without_an_fm_group_the_deep_group_is_multiplied():
    shared, own = build(WIDE, DEEP), build(WIDE, DEEP, group("fm", "DEEP", "a b c"))
    own.load_state_dict(shared.state_dict())
    torch.testing.assert_close(logits(shared), logits(own))


def test_a_row_without_ids_has_no_first_and_second_order_terms():
    model = build(WIDE, group("fm", "DEEP", "a b c"), group("deep", "DEEP", "price"))
    batch = rows(a=[[]], b=[[]], c=[[]])
    with torch.no_grad():
        expected = model.output_mlp(model.deep_mlp(torch.zeros(1, 1))).squeeze(1)
    torch.testing.assert_close(logits(model, batch), expected)


# ---- what does not fit


def test_features_of_different_width_cannot_be_multiplied():
    with pytest.raises(ConfigError, match=r"group 'deep'.*one width, but have a: 2, wider: 3.*in a group 'fm'"):
        build(WIDE, group("deep", "DEEP", "a wider"))
    build(WIDE, group("fm", "DEEP", "a b"), group("deep", "DEEP", "a wider"))
    with pytest.raises(ConfigError, match=r"group 'fm'.*a: 2, price: 1"):
        build(WIDE, group("fm", "DEEP", "a price"), DEEP)


@pytest.mark.parametrize(("groups", "missing"), [([DEEP], "wide"), ([WIDE], "deep")])
def test_a_missing_group_is_named(groups, missing):
    with pytest.raises(ConfigError, match=rf"model_config.deepfm needs a feature group '{missing}'"):
        parse(*groups, validate=True)
    with pytest.raises(ConfigError, match=rf"'{missing}' is not a feature group"):
        build(*groups)


def test_a_group_of_another_type_or_name_is_refused():
    with pytest.raises(ConfigError, match=r"deepfm reads 'wide' as WIDE, but its group_type is DEEP"):
        parse(group("wide", "DEEP", "a b"), DEEP, validate=True)
    with pytest.raises(ConfigError, match=r"deepfm does not read a group 'cross'"):
        parse(WIDE, DEEP, group("cross", "DEEP", "a"), validate=True)


# ---- training and serving


GROUPS = {
    "shared": (WIDE, DEEP),
    "fm": (WIDE, group("fm", "DEEP", "a b"), group("deep", "DEEP", "a b wider price")),
    "sequence": (WIDE, group("fm", "DEEP", "a b"), group("deep", "DEEP", "a wider", DIN)),
    "sequence as a field": (WIDE, group("deep", "DEEP", "a b", DIN)),
}
MANY = rows(
    a=[[i % 4] * (i % 3) for i in range(7)],
    b=[[3 - i % 4] for i in range(7)],
    c=[[i % 4, 1][: i % 3] for i in range(7)],
    wider=[[i % 4] for i in range(7)],
    clicks=[[i % 4, (i + 1) % 4, 1][: i % 4] for i in range(7)],
)
ONE = rows(a=[[3]], b=[[1, 2]], c=[[0]], wider=[[2]], clicks=[[1, 1, 3]])
EMPTY = rows(a=[[], []], b=[[], []], c=[[], []])


@pytest.mark.parametrize("settings", ["", FINAL], ids=["sum", "final"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_a_scripted_file_predicts_as_the_model(groups, settings):
    model = build(*groups, settings=settings)
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
    model = build(WIDE, DEEP, settings=settings, body="losses { softmax_cross_entropy {} } num_class: 3")
    assert logits(model).shape == (2, 3)


def test_the_config_of_the_readme_sets_every_field():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    config = parse_config(readme.split("```")[1], partial=True)
    settings = config.model_config.deepfm
    assert {field.name for field, _ in settings.ListFields()} == set(settings.DESCRIPTOR.fields_by_name)
