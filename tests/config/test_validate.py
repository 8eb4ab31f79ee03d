import pytest

from tzrec_core.config import find_mistakes, parse_config, validate
from tzrec_core.errors import ConfigError
from tzrec_core.plugins import LossSpec, ModelSpec, Output, Plugin, Registry, use_registry

SAMPLER = """
negative_sampler {
  input_path: "items" num_sample: 4 attr_fields: "item_id" attr_fields: "price" item_id_field: "item_id"
}
label_fields: "clicked"
"""
DEEP = 'group_name: "deep" group_type: DEEP feature_names: "user_id" feature_names: "item_id"'


def sampled(found):
    """Mistakes but for the word that sampling itself is not supported yet."""
    return [line for line in found if "not supported yet" not in line]


def test_a_valid_config_has_no_mistakes(valid):
    config = parse_config(valid)
    assert find_mistakes(config) == []
    validate(config)


def test_validate_raises_them_all_at_once(changed):
    config = parse_config(changed('feature_names: "user_id"', 'feature_names: "user"', "auc {}", "xauc {}"))
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.problems == find_mistakes(config)
    assert len(caught.value.problems) == 2
    assert str(caught.value).startswith("2 mistakes\n  1. ")


# Each mistake: what is replaced in the valid config, and the words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # features and groups
        (
            'feature_names: "user_id"',
            'feature_names: "user_di"',
            "model_config.feature_groups[0] ('wide'): 'user_di' is not a feature. Did you mean 'user_id'?",
        ),
        (
            'feature_names: "user_id"',
            'feature_names: "user_id" feature_names: "user_id"',
            "model_config.feature_groups[0] ('wide') lists 'user_id' 2 times",
        ),
        (
            'feature_name: "price"',
            'feature_name: "item_id"',
            "feature 'item_id' is defined 2 times, at feature_configs[1].id_feature and feature_configs[2].raw_feature",
        ),
        (
            'feature_names: "user_id"',
            'feature_names: "price"',
            "('wide') is WIDE and takes ids only, but 'price' is a number; give it boundaries or move it",
        ),
        (
            DEEP,
            DEEP + ' sequence_groups { feature_names: "seen__item_di" } '
            'sequence_encoders { pooling_encoder { input: "deep" } }',
            "feature_groups[1] ('deep').sequence_groups ('deep'): 'seen__item_di' is not a feature. "
            "Did you mean 'seen__item_id'?",
        ),
        (
            DEEP,
            DEEP + ' sequence_groups { feature_names: "seen__item_id" }',
            "('deep') has sequence_groups but no sequence_encoders; add one, such as sequence_encoders {",
        ),
        (
            'group_name: "wide" group_type: WIDE',
            'group_name: "wide" group_type: WIDE sequence_groups { feature_names: "seen__item_id" } '
            "sequence_encoders { }",
            "('wide') is WIDE; only a DEEP group can hold sequence_groups",
        ),
        # groups and the model
        (
            'group_name: "deep"',
            'group_name: "depe"',
            "model_config.deepfm needs a feature group 'deep' (DEEP). Groups are: wide, depe. Did you mean 'depe'?",
        ),
        (
            'group_name: "deep"',
            'group_name: "depe"',
            "model_config.feature_groups: deepfm does not read a group 'depe'; it reads deep, fm, wide. Rename or",
        ),
        (
            'group_name: "deep"',
            'group_name: "wide"',
            "model_config.feature_groups: 2 groups are called 'wide'; rename all but one",
        ),
        (
            "group_type: WIDE",
            "group_type: DEEP",
            "model_config.feature_groups: deepfm reads 'wide' as WIDE, but its group_type is DEEP",
        ),
        (
            DEEP,
            'group_name: "deep" group_type: SEQUENCE feature_names: "item_id" feature_names: "seen__item_id"',
            "deepfm reads 'deep' as DEEP, but its group_type is SEQUENCE",
        ),
        (
            DEEP,
            'group_name: "deep" group_type: SEQUENCE feature_names: "item_id"',
            "('deep') is SEQUENCE but none of its features is a sequence",
        ),
        # labels
        (
            'label_fields: "clicked"',
            'label_fields: "clicked" label_fields: "clicked"',
            "data_config.label_fields lists 'clicked' 2 times",
        ),
        ('label_fields: "clicked"', "", "data_config.label_fields is empty; name the column that holds the label"),
        # losses and metrics
        ("losses { binary_cross_entropy {} }", "", "model_config.losses is empty; add one, such as losses {"),
        (
            "binary_cross_entropy {}",
            "softmax_cross_entropy {}",
            "model_config.num_class = 1 does not fit softmax_cross_entropy, which takes at least 2",
        ),
        (
            "losses { binary_cross_entropy {} }",
            "num_class: 2 losses { binary_cross_entropy {} }",
            "model_config.num_class = 2 does not fit binary_cross_entropy, which takes 1",
        ),
        (
            "losses { binary_cross_entropy {} }",
            "num_class: 2 losses { binary_focal_loss {} }",
            "model_config.num_class = 2 does not fit binary_focal_loss, which takes 1",
        ),
        (
            "losses { binary_cross_entropy {} }",
            'num_class: 3 losses { jrc_loss { session_name: "user_id" } }',
            "model_config.num_class = 3 does not fit jrc_loss, which takes 2",
        ),
        (
            "losses { binary_cross_entropy {} }",
            "num_class: 0 losses { binary_cross_entropy {} }",
            "model_config.num_class = 0 does not fit",
        ),
        (
            "losses { binary_cross_entropy {} }",
            'num_class: 2 losses { jrc_loss { session_name: "user" } }',
            "model_config.losses[0].jrc_loss.session_name: 'user' is not an id feature. Did you mean 'user_id'?",
        ),
        (
            "auc {}",
            "recall_at_k {}",
            "model_config.metrics[0].recall_at_k: deepfm is a rank model and does not support this metric",
        ),
        (
            "auc {}",
            "mean_squared_error {}",
            "model_config.metrics[0].mean_squared_error reads value predictions, but with these losses and num_class "
            "= 1 the model gives binary",
        ),
        (
            "auc {}",
            'grouped_auc { grouping_key: "price" }',
            "model_config.metrics[0].grouped_auc.grouping_key: 'price' is not an id feature",
        ),
        ("metrics { auc {} }", "train_metrics { xauc {} }", "model_config.train_metrics[0].xauc reads value"),
        # slots
        (
            "auc {}",
            "plugin {}",
            "model_config.metrics[0].plugin: the slot is empty; write [tzrec.dev/pkg.Message]",
        ),
        (
            "auc {}",
            "plugin { [tzrec.dev/acme_ranking.Counting] { rows: 1 } }",
            "model_config.metrics[0].plugin: acme_ranking.Counting is not the settings of a metric. Installed: "
            "acme_ranking.Brier",
        ),
        (
            "binary_cross_entropy {}",
            "plugin { [tzrec.dev/acme_ranking.Brier] {} }",
            "model_config.losses[0].plugin: acme_ranking.Brier is not the settings of a loss",
        ),
        (
            "label_fields",
            "reader { [tzrec.dev/acme_ranking.Brier] {} } label_fields",
            "data_config.reader: acme_ranking.Brier is not the settings of a reader. Installed: acme_ranking.Counting",
        ),
        ("label_fields", "reader { } label_fields", "data_config.reader: the slot is empty"),
        (
            DEEP,
            DEEP + ' sequence_groups { feature_names: "seen__item_id" } '
            "sequence_encoders { plugin { [tzrec.dev/acme_ranking.Brier] {} } }",
            "model_config.feature_groups[1].sequence_encoders[0].plugin: acme_ranking.Brier is not the settings of a "
            "seq encoder. Installed: acme_ranking.LastSteps",
        ),
        # the whole
        (
            "deepfm { deep { hidden_units: [8, 4] } }",
            "",
            "model_config names no model; add one, such as deepfm { ... }",
        ),
    ],
)
def test_a_mistake_has_its_place_and_its_words(changed, mistakes, old, new, words):
    found = mistakes(changed(old, new))
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("binary_cross_entropy {}", "binary_focal_loss {}"),
        ("losses { binary_cross_entropy {} }", "num_class: 2 losses { softmax_cross_entropy {} }"),
        ("losses { binary_cross_entropy {} }", 'num_class: 2 losses { jrc_loss { session_name: "user_id" } }'),
        ("binary_cross_entropy {}", "plugin { [tzrec.dev/acme_ranking.Tversky] { alpha: 0.5 } }"),
        ("auc {}", "plugin { [tzrec.dev/acme_ranking.Brier] { } }"),
        ("metrics { auc {} }", "train_metrics { plugin { [tzrec.dev/acme_ranking.Brier] { } } }"),
        ("auc {}", 'grouped_auc { grouping_key: "seen__item_id" }'),
        ("label_fields", "reader { [tzrec.dev/acme_ranking.Counting] { rows: 5 } } label_fields"),
        ("auc {} }", "auc {} } feature_groups { group_name: 'fm' group_type: DEEP feature_names: 'item_id' }"),
        (DEEP, DEEP + ' sequence_groups { group_name: "s" feature_names: "seen__item_id" } sequence_encoders '
         '{ plugin { [tzrec.dev/acme_ranking.LastSteps] { input: "s" } } }'),
        ("deepfm {", "wide_and_deep {"),
    ],
)  # fmt: skip
def test_what_fits_has_no_mistakes(changed, mistakes, old, new):
    assert mistakes(changed(old, new)) == []


def test_a_config_without_model_config_says_so(mistakes):
    found = mistakes("train_input_path: 'a' eval_input_path: 'b' model_dir: 'c'")
    assert found == ["model_config is missing"]


def test_a_partial_config_is_not_asked_for_what_it_lacks(mistakes):
    assert mistakes("", partial=True) == []
    assert mistakes("model_config { }", partial=True) == []
    assert mistakes("model_config { deepfm { deep { hidden_units: 1 } } }", partial=True) == []


def test_what_a_partial_config_has_is_checked(mistakes):
    found = mistakes("model_config { deepfm { } losses { softmax_cross_entropy {} } }", partial=True)
    assert found == ["model_config.num_class = 1 does not fit softmax_cross_entropy, which takes at least 2"]


def test_features_without_a_name_are_not_taken_for_one(mistakes):
    text = "feature_configs { id_feature { expression: 'a' } } feature_configs { id_feature { expression: 'b' } }"
    assert mistakes(text, partial=True) == []


# Data groups


def test_features_of_two_data_groups_in_one_group_are_listed(changed, mistakes):
    found = sampled(mistakes(changed('label_fields: "clicked"', SAMPLER)))
    assert len(found) == 2
    assert found[1].startswith(
        "model_config.feature_groups[1] ('deep') mixes features of two data groups, __BASE__: user_id and "
        "__NEG__: item_id. A group reads one: split it, or"
    )


def test_with_all_in_one_data_group_nothing_is_mixed(changed, mistakes):
    text = changed('label_fields: "clicked"', SAMPLER + "force_base_data_group: true")
    assert sampled(mistakes(text)) == []


# Other tasks

TASKS = """
  two_tasks {
    task_towers { tower_name: "click" label_name: "clicked" num_class: 2 losses { binary_cross_entropy {} } }
    task_towers {
      tower_name: "buy" label_name: "buoght" sample_weight_name: "wieght" task_space_indicator_label: "x"
      losses { softmax_cross_entropy {} } metrics { recall_at_k {} } train_metrics { accuracy {} }
    }
  }
"""


def test_each_task_is_checked_by_itself(changed, mistakes):
    text = changed(
        "group_type: WIDE", "group_type: DEEP",
        "deepfm { deep { hidden_units: [8, 4] } }", TASKS,
        'label_fields: "clicked"', 'label_fields: "clicked" label_fields: "bought"',
        "losses { binary_cross_entropy {} }\n  metrics { auc {} }", "",
    )  # fmt: skip
    tower = "model_config.two_tasks.task_towers[1]"
    labels = "data_config.label_fields (clicked, bought)"
    assert mistakes(text) == [
        f"{tower}.label_name: 'buoght' is not among {labels}. Did you mean 'bought'?",
        f"{tower}.task_space_indicator_label: 'x' is not among {labels}.",
        f"{tower}.sample_weight_name: 'wieght' is not among data_config.sample_weight_fields (weight). "
        "Did you mean 'weight'?",
        "model_config.two_tasks.task_towers[0].num_class = 2 does not fit binary_cross_entropy, which takes 1",
        f"{tower}.num_class = 1 does not fit softmax_cross_entropy, which takes at least 2",
        f"{tower}.metrics[0].recall_at_k: two_tasks is a multitask model and does not support this metric",
    ]


TOWERS = """
  feature_groups { group_name: "user" group_type: DEEP feature_names: "user_id" }
  feature_groups { group_name: "item" group_type: WIDE feature_names: "item_id" }
  two_towers {
    user_tower { input: "usr" } item_tower { input: "item" }
    side_towers { input: "user" } side_towers { input: "no" }
  }
  losses { l2_loss {} }
  metrics { auc {} }
"""


def test_groups_named_by_fields_are_followed_and_a_match_model_supports_its_own_losses(valid, mistakes):
    start = valid.index("  feature_groups")
    found = mistakes(valid[:start] + TOWERS + "}")
    towers = "model_config.two_towers"
    assert f"{towers}.user_tower.input names no group that exists: 'usr' (DEEP). Groups are: user, item." in found[0]
    assert "Did you mean 'user'?" in found[0]
    assert found[1:] == [
        "model_config.feature_groups: two_towers reads 'item' as DEEP or SEQUENCE, but its group_type is WIDE",
        f"{towers}.side_towers[1].input names no group that exists: 'no' (DEEP). Groups are: user, item.",
        "model_config.losses[0].l2_loss: two_towers is a match model and does not support this loss; see "
        "`tzrec show-model two_towers`",
        "model_config.metrics[0].auc: two_towers is a match model and does not support this metric",
    ]


def test_the_first_group_is_taken_whatever_its_name(changed, mistakes):
    text = changed("deepfm { deep { hidden_units: [8, 4] } }", 'plain_model { title: "x" }')
    assert mistakes(text) == [
        "model_config.feature_groups: plain_model reads 'wide' as DEEP, but its group_type is WIDE"
    ]
    assert mistakes(text.replace("group_type: WIDE", "group_type: DEEP")) == []
    start, end = text.index("  feature_groups"), text.index("  plain_model")
    assert mistakes(text[:start] + text[end:]) == [
        "model_config.plain_model needs a feature group '<any name>' (DEEP). Groups are: none."
    ]


def test_a_loss_in_a_slot_is_called_by_its_own_name(mistakes):
    mlp = "tzrec_core.protos.module_pb2:MLP"
    loss = LossSpec("many", "a:B", mlp, summary="s", output=Output.SOFTMAX, num_class=(2, 4))
    model = ModelSpec("m", "a:B", mlp, summary="s")
    with use_registry(Registry([Plugin(name="a", distribution="a", specs=[loss, model])])):
        text = "model_config { m {} num_class: 5 losses { plugin { [tzrec.dev/tzrec_core.protos.MLP] {} } } }"
        assert mistakes(text, partial=True) == ["model_config.num_class = 5 does not fit many, which takes 2 to 4"]


def test_a_table_that_only_a_plugin_could_read_names_the_kind_of_plugin():
    for name, what in (("OdpsDataset", "MaxCompute tables"), ("KafkaDataset", "Kafka topics")):
        config = parse_config(f"data_config {{ dataset_type: {name} }}", partial=True)
        (mistake,) = find_mistakes(config, partial=True)
        assert f"dataset_type = {name}: {what} are read by a plugin that offers a ReaderSpec" in mistake


# train_config and eval_config

KINDS = "table_wise, row_wise, column_wise, table_row_wise, table_column_wise, grid_shard, data_parallel"
KERNELS = "fused, fused_uvm_caching, fused_uvm, dense"


def test_settings_that_need_one_another_are_missed_and_names_are_compared_all_at_once(changed, mistakes):
    text = changed(
        'feature_name: "item_id"',
        'feature_name: "item_id" embedding_constraints { compute_kernels: ["fused", "fusde"] }',
        "data_config {",
        """
        eval_config { use_dense_ema: true }
        train_config {
          sparse_optimizer { sgd_optimizer { lr: 1 } }
          dense_optimizer { sgd_optimizer { lr: 1 } }
          fine_tune_ckpt_param_map: "names.txt"
          tensorboard_summaries: ["loss", "lr"]
          global_embedding_constraints { sharding_types: ["row_wise", "colum_wise"] }
        }
        data_config {""",
    )
    assert mistakes(text) == [
        "eval_config.use_dense_ema: training keeps no moving averages; write ema {} into "
        "train_config.dense_optimizer, or remove it",
        "train_config.fine_tune_ckpt_param_map = 'names.txt' has no effect without fine_tune_checkpoint; set that too, "
        "or remove it",
        "train_config.tensorboard_summaries: 'lr' is not one of loss, learning_rate, parameter, global_gradient_norm, "
        "gradient_norm, gradient.",
        f"train_config.global_embedding_constraints.sharding_types: 'colum_wise' is not one of {KINDS}. Did you mean "
        "'column_wise'?",
        f"feature_configs[1].id_feature.embedding_constraints.compute_kernels: 'fusde' is not one of {KERNELS}. Did "
        "you mean 'fused'?",
    ]


def test_a_member_of_a_sequence_feature_has_constraints_too(changed, mistakes):
    (found,) = mistakes(
        changed(
            'features { id_feature { feature_name: "item_id"',
            'features { id_feature { feature_name: "item_id" embedding_constraints { sharding_types: "rows" }',
        )
    )
    place = "feature_configs[3].sequence_feature.features[0].id_feature.embedding_constraints.sharding_types"
    assert found == f"{place}: 'rows' is not one of {KINDS}. Did you mean 'row_wise'?"


def test_training_settings_that_fit_have_no_mistakes(mistakes):
    text = """
    eval_config { use_dense_ema: true }
    train_config {
      dense_optimizer { ema {} }
      fine_tune_checkpoint: "other_run" fine_tune_ckpt_param_map: "names.txt"
      tensorboard_summaries: ["loss", "gradient_norm"]
      global_embedding_constraints { sharding_types: ["row_wise", "table_wise"] compute_kernels: "fused" }
      early_stopping { metric: "auc" } best_checkpoint { metric: "auc" }
    }
    """
    assert mistakes(text, partial=True) == []
