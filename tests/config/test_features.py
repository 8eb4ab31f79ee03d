import json
from pathlib import Path

import pytest

from tzrec_core.config import BASE_DATA_GROUP, NEG_DATA_GROUP, data_group, feature_entries, parse_config

ROWS = json.loads((Path(__file__).parents[1] / "goldens" / "features_facts.json").read_text())["rows"]


def entries(text, data_config=""):
    config = parse_config(f"{text} data_config {{ {data_config} }}", partial=True)
    return feature_entries(config.feature_configs), config.data_config


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['case']} {row['name']}")
def test_a_feature_is_what_torcheasyrec_makes_of_it(row):
    found, data_config = entries(f"feature_configs {{ {row['config']} }}")
    (entry,) = [e for e in found if e.name == row["name"]]
    assert entry.is_sparse == row["is_sparse"]
    assert entry.is_sequence == row["is_sequence"]
    assert [list(column) for column in entry.columns] == row["side_inputs"]
    assert data_group(entry, data_config) == row["data_group"]


SEQUENCE = """
feature_configs { id_feature { feature_name: "a" expression: "user:a" } }
feature_configs { }
feature_configs {
  sequence_feature {
    sequence_name: "s"
    features { id_feature { feature_name: "b" expression: "item:b" } }
    features { }
    features {
      expr_feature {
        feature_name: "c" expression: "x + y" variables: "item:x" variables: "user:y" sequence_fields: "x"
      }
    }
  }
}
feature_configs { sequence_raw_feature { feature_name: "d" expression: "user:d" } }
"""


def test_members_of_a_sequence_stand_in_their_place_with_their_paths():
    found, _ = entries(SEQUENCE)
    assert [(e.name, e.kind, e.path, e.is_sequence) for e in found] == [
        ("a", "id_feature", "feature_configs[0].id_feature", False),
        ("s__b", "id_feature", "feature_configs[2].sequence_feature.features[0].id_feature", True),
        ("s__c", "expr_feature", "feature_configs[2].sequence_feature.features[2].expr_feature", True),
        ("d", "raw_feature", "feature_configs[3].sequence_raw_feature", True),
    ]


def test_columns_of_a_sequence_carry_its_name_unless_they_are_repeated_at_every_step():
    found, _ = entries(SEQUENCE)
    assert found[1].columns == (("item", "s__b"),)
    assert found[2].columns == (("item", "s__x"), ("user", "y"))


SAMPLED = 'negative_sampler { attr_fields: "i" attr_fields: "price" item_id_field: "id" }'


@pytest.mark.parametrize(
    ("feature", "sampler", "group"),
    [
        ('id_feature { feature_name: "i" expression: "item:i" }', SAMPLED, NEG_DATA_GROUP),
        ('id_feature { feature_name: "id" expression: "item:id" }', SAMPLED, NEG_DATA_GROUP),
        ('id_feature { feature_name: "u" expression: "user:u" }', SAMPLED, BASE_DATA_GROUP),
        ('id_feature { feature_name: "i" expression: "item:i" }', "", BASE_DATA_GROUP),
        (
            'id_feature { feature_name: "i" expression: "item:i" }',
            SAMPLED + "force_base_data_group: true",
            BASE_DATA_GROUP,
        ),
        ('id_feature { feature_name: "i" expression: "item:i" }', 'tdm_sampler { attr_fields: "i" }', BASE_DATA_GROUP),
        (
            'combo_feature { feature_name: "c" expression: "item:i" expression: "item:price" }',
            SAMPLED + "fg_mode: FG_NORMAL",
            NEG_DATA_GROUP,
        ),
        (
            'combo_feature { feature_name: "c" expression: "item:i" expression: "user:u" }',
            SAMPLED + "fg_mode: FG_NORMAL",
            BASE_DATA_GROUP,
        ),
        ('id_feature { feature_name: "x" expression: "item:i" }', SAMPLED + "fg_mode: FG_NORMAL", NEG_DATA_GROUP),
        ('id_feature { feature_name: "x" expression: "item:i" }', SAMPLED, BASE_DATA_GROUP),  # read as column x
    ],
)  # fmt: skip
def test_a_feature_of_sampled_columns_only_belongs_to_the_negatives(feature, sampler, group):
    (entry,), data_config = entries(f"feature_configs {{ {feature} }}", sampler)
    assert data_group(entry, data_config) == group


@pytest.mark.parametrize(
    ("mode", "sampled", "kinds"),
    [("FG_NONE", "x3", ("",)), ("FG_NORMAL", "x", ("id_", "raw_", "sequence_"))],
)
def test_both_floors_agree_on_names_columns_and_groups(mode, sampled, kinds):
    from tzrec_core.features import create_features

    configs = [c for c in dict.fromkeys(row["config"] for row in ROWS) if c.startswith(kinds) and "zch" not in c]
    text = "\n".join(f"feature_configs {{ {config} }}" for config in configs)
    for number in range(text.count('"x"')):  # one name each
        text = text.replace('feature_name: "x"', f'feature_name: "x{number}"', 1)
    found, data_config = entries(text, SAMPLED.replace('"i"', f'"{sampled}"') + f"fg_mode: {mode}")
    features = create_features(parse_config(text, partial=True).feature_configs, data_config)
    assert [(e.name, data_group(e, data_config), list(e.columns)) for e in found] == [
        (f.name, f.data_group, list(f.side_inputs)) for f in features
    ]
    assert {f.data_group for f in features} == {BASE_DATA_GROUP, NEG_DATA_GROUP}
