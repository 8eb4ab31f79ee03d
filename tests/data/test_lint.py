"""Findings of `tzrec validate --data`: one test per kind, each with name, number and fix."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny_plugin"))
import draft_data

from tzrec_core.config import parse_config
from tzrec_core.data import lint
from tzrec_core.data.lint import Level, lint_data
from tzrec_core.plugins import Registry, Selection, use_registry

NUM_ROWS = 400


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(0, 20, NUM_ROWS),
        "word": rng.choice(["a", "b", "c"], NUM_ROWS),
        "price": rng.random(NUM_ROWS),
        "click": rng.integers(0, 2, NUM_ROWS),
    }


@pytest.fixture
def found(tmp_path, rows):
    """The findings about `rows`, for features given as text."""

    def run(
        *features,
        mode="FG_NORMAL",
        model='first {} losses { binary_cross_entropy {} }',
        data="",
        group=None,
        **columns,
    ):  # fmt: skip
        table = pa.table({name: values for name, values in {**rows, **columns}.items() if values is not None})
        pq.write_table(table, tmp_path / "train.parquet", row_group_size=50)
        features = features or (USER, WORD, PRICE)
        names = [text.split('feature_name: "')[1].split('"')[0] for text in features if "sequence_feature" not in text]
        names = names if group is None else group
        config = parse_config(
            f"""
            train_input_path: "{tmp_path}/train.parquet" eval_input_path: "" model_dir: "run"
            train_config {{
              sparse_optimizer {{ adam_optimizer {{ lr: 0.1 }} }} dense_optimizer {{ adam_optimizer {{ lr: 0.1 }} }}
            }}
            data_config {{ dataset_type: ParquetDataset fg_mode: {mode} label_fields: "click" {data} }}
            {" ".join(f"feature_configs {{ {text} }}" for text in features)}
            model_config {{
              feature_groups {{ group_name: "g" group_type: DEEP feature_names: {list(names)} }}
              {model}
            }}
            """,
            validate=True,
        )
        return lint_data(config).findings

    return run


@pytest.fixture(scope="module")
def _models():
    return Registry.find(Selection(only=frozenset(), files=(str(Path(draft_data.__file__).with_name("draft.py")),)))


@pytest.fixture(autouse=True)
def _only_these_models(_models):
    with use_registry(_models):
        yield


USER = 'id_feature { feature_name: "user" expression: "user:user" num_buckets: 20 embedding_dim: 4 }'
WORD = 'id_feature { feature_name: "word" expression: "item:word" vocab_list: ["a", "b", "c"] embedding_dim: 4 }'
PRICE = 'raw_feature { feature_name: "price" expression: "item:price" }'


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


def test_a_config_that_fits_its_data_has_no_findings(found):
    assert found() == []


def test_a_missing_column_names_its_feature_and_the_nearest_column(found):
    finding = only(
        found(USER, WORD, PRICE.replace("item:price", "item:prize"), price=None, price_=[0.5] * 200 + [1] * 200)[:1]
    )
    assert (finding.level, finding.feature) == (Level.ERROR, "price")
    assert "there is no column 'prize', read by feature 'price'. Did you mean 'price_'?" in finding.what
    assert finding.fix == 'expression: "item:price_"'


def test_all_missing_columns_are_told_at_once(found):
    findings = found(price=None, click=None)
    assert [f.feature for f in findings if f.level is Level.ERROR] == ["price", "click"]


def test_ids_out_of_range_are_an_error_with_the_bucket_count_that_fits(found):
    finding = only(found(USER.replace("20", "15"), WORD, PRICE))
    assert (finding.level, finding.feature, finding.number) == (Level.ERROR, "user", 19)
    assert "ids from 0 to 19" in finding.what
    assert "outside the table's rows, 0 to 14" in finding.what
    assert finding.fix == "num_buckets: 20"


def test_negative_ids_are_to_be_hashed(found, rows):
    finding = only(found(user=rows["user"] - 1))
    assert (finding.level, finding.feature, finding.fix) == (Level.ERROR, "user", "hash_bucket_size: 200")
    assert "id -1 is outside its table's rows" in finding.what


def test_encoded_ids_out_of_range_are_an_error_too(found, rows):
    findings = found(USER.replace("num_buckets: 20", "hash_bucket_size: 15"), PRICE, mode="FG_NONE", word=None)
    finding = only(findings)
    assert (finding.level, finding.feature, finding.fix) == (Level.ERROR, "user", "hash_bucket_size: 20")


@pytest.mark.parametrize(
    ("feature", "what", "fix"),
    [
        (PRICE.replace("item:price", "item:word"), "is not a number", 'id_feature { feature_name: "price"'),
        (USER.replace("user:user", "item:word"), "is not an integer id", "hash_bucket_size: 100"),
        (PRICE.replace("item:price", "item:pair"), "there are 2 values, but value_dim is 1", "value_dim: 2"),
    ],
)
def test_a_column_of_the_wrong_type_is_an_error_in_the_words_of_the_parser(found, feature, what, fix):
    findings = found(feature, pair=pa.array([[0.0, 1.0]] * NUM_ROWS))
    error = only([finding for finding in findings if finding.level is Level.ERROR])
    assert what in error.what
    assert error.fix.startswith(fix)


def test_a_constant_column_is_told(found):
    finding = only(found(word=["a"] * NUM_ROWS))
    assert (finding.level, finding.feature, finding.number) == (Level.WARNING, "word", 1)
    assert "is the same in all rows" in finding.what
    assert finding.fix == "remove id_feature 'word', also from feature_groups"


def test_a_column_that_gives_away_the_label_is_told_with_its_auc(found, rows):
    finding = only(found(price=rows["click"] * 3.0))
    assert (finding.feature, finding.number) == ("price", 1)
    assert "gives the label away: AUC 1.000 by itself, on rows held out" in finding.what


def test_a_word_that_gives_away_a_class_is_told_with_its_purity(found, rows):
    classes = np.arange(NUM_ROWS) % 3
    model = "first {} num_class: 3 losses { softmax_cross_entropy {} }"
    finding = only(found(click=classes, word=np.array(["a", "b", "c"])[classes], model=model))
    assert finding.feature == "word"
    assert "purity 1.000" in finding.what


def test_a_large_number_as_it_is_is_told_with_boundaries_that_fit(found, rows):
    finding = only(found(price=rows["price"] * 1e6))
    assert (finding.level, finding.feature) == (Level.WARNING, "price")
    assert finding.number == pytest.approx(0.99e6, rel=0.02)
    assert finding.fix.startswith("boundaries: [")
    scaled = PRICE.replace('"item:price"', '"item:price" ' + finding.fix)
    assert found(USER, WORD, scaled, price=rows["price"] * 1e6) == []


def test_a_large_vector_is_told_with_a_normalizer_that_fits(found, rows):
    vector = pa.array((np.random.default_rng(1).random((NUM_ROWS, 2)) * 1e6).tolist())
    feature = PRICE.replace('"item:price"', '"item:price" value_dim: 2')
    finding = only(found(USER, WORD, feature, price=vector))
    assert finding.fix.startswith('normalizer: "method=zscore,mean=')
    scaled = feature.replace("value_dim: 2", f"value_dim: 2 {finding.fix}")
    assert found(USER, WORD, scaled, price=vector) == []


def test_a_hash_with_fewer_rows_than_values_is_told_with_the_share_that_collides(found):
    words = [f"w{number % 100}" for number in range(NUM_ROWS)]
    feature = WORD.replace('vocab_list: ["a", "b", "c"]', "hash_bucket_size: 50")
    finding = only(found(USER, feature, PRICE, word=words))
    assert (finding.feature, finding.number, finding.fix) == ("word", 100, "hash_bucket_size: 400")
    assert "100 distinct values in 50 rows: 86.5% of them share a row with another" in finding.what


def test_a_table_far_too_large_is_told(found):
    finding = only(found(USER.replace("num_buckets: 20", "hash_bucket_size: 5000000"), WORD, PRICE))
    assert (finding.number, finding.fix) == (20, "hash_bucket_size: 200")
    finding = only(found(USER.replace("20", "5000000"), WORD, PRICE))
    assert finding.fix == "num_buckets: 20"


def test_words_that_the_vocabulary_lacks_are_told(found):
    finding = only(found(USER, WORD.replace('"b", "c"', '"b"'), PRICE))
    assert finding.feature == "word"
    assert finding.number == pytest.approx(1 / 3, abs=0.1)
    assert "are not in vocab_list" in finding.what


def test_a_column_that_is_mostly_missing_is_told_with_its_share(found, rows):
    words = [word if number % 4 == 0 else None for number, word in enumerate(rows["word"])]
    finding = only(found(word=words))
    assert (finding.feature, finding.number) == ("word", 0.75)


def test_features_in_no_group_are_told(found):
    finding = only(found(USER, WORD, PRICE, group=["user", "price"]))
    assert (finding.feature, finding.fix) == ("word", 'feature_groups { ... feature_names: "word" }')


def test_a_feature_that_groups_the_rows_of_a_metric_is_used(found):
    model = 'first {} losses { binary_cross_entropy {} } metrics { grouped_auc { grouping_key: "word" } }'
    assert found(USER, WORD, PRICE, group=["user", "price"], model=model) == []


def test_columns_that_nothing_reads_are_told_in_one_finding(found, rows):
    finding = only(found(extra=rows["user"], more=rows["price"]))
    assert (finding.feature, finding.number) == ("", 2)
    assert finding.what == "columns that nothing reads: extra, more"


BCE = "losses { binary_cross_entropy {} }"
SOFTMAX = "losses { softmax_cross_entropy {} }"
MEND = "leave these rows out, or mend the column"


@pytest.mark.parametrize(
    ("labels", "model", "what", "fix"),
    [
        ([0, 1, 2, 3], BCE, "labels from 0 to 3", f"num_class: 4 {SOFTMAX}"),
        ([-1, 1], BCE, "labels from -1 to 1", "losses { l2_loss {} }"),
        ([0, 1, 2], f"num_class: 2 {SOFTMAX}", "33.2% of them not among the classes 0 to 1", "num_class: 3"),
        ([0, 1, None, 1], BCE, "a label is missing", MEND),
        (["no", "yes"], BCE, "is not a number", MEND),
    ],
)
def test_labels_out_of_range_are_an_error(found, labels, model, what, fix):
    column = pa.array([labels[number % len(labels)] for number in range(NUM_ROWS)])
    finding = only(found(click=column, model=f"first {{}} {model}"))
    assert (finding.level, finding.feature, finding.fix) == (Level.ERROR, "click", fix)
    assert what in finding.what


def test_a_label_that_is_always_the_same_is_told(found):
    finding = only(found(click=[1] * NUM_ROWS))
    assert (finding.level, finding.feature, finding.number) == (Level.WARNING, "click", 1)


def test_a_label_of_large_scale_is_told(found, rows):
    finding = only(found(click=np.random.default_rng(1).random(NUM_ROWS) * 1e5, model="first {} losses { l2_loss {} }"))
    assert finding.number == pytest.approx(1e5 / 12**0.5, rel=0.1)
    assert "standard deviation" in finding.what


def test_negative_weights_are_an_error(found):
    finding = only(found(data='sample_weight_fields: "w"', w=[-1.0] * NUM_ROWS))
    assert (finding.level, finding.feature) == (Level.ERROR, "w")
    assert "is negative" in finding.what


def test_columns_of_a_sequence_with_unequal_steps_are_an_error(found):
    settings = 'feature_name: "{0}" expression: "user:{0}" hash_bucket_size: 100 embedding_dim: 4'
    member = f"features {{{{ id_feature {{{{ {settings} }}}} }}}}"
    sequence = (
        f'sequence_feature {{ sequence_name: "s" sequence_length: 5 sequence_delim: ";" '
        f'{member.format("a")} {member.format("b")} }}'
    )  # fmt: skip
    columns = {"s__a": ["1;2", "3;1"] * 200, "s__b": ["1;2", "3"] * 200}
    findings = found(USER, WORD, PRICE, sequence, group=["user", "word", "price", "s__a", "s__b"], **columns)
    finding = only(findings)
    assert (finding.level, finding.feature) == (Level.ERROR, "s")
    assert "have 2 and 1 steps" in finding.what


def test_errors_come_before_warnings(found, rows):
    levels = [finding.level for finding in found(USER.replace("20", "15"), WORD, PRICE, price=rows["price"] * 1e6)]
    assert levels == [Level.ERROR, Level.WARNING]


def test_of_a_large_table_a_sample_is_read(found, monkeypatch, rows):
    monkeypatch.setattr(lint, "MAX_ROWS", 100)
    reports = []
    original = lint.LintReport
    monkeypatch.setattr(lint, "LintReport", lambda *args: reports.append(original(*args)) or reports[-1])
    found()
    assert (reports[0].num_rows, reports[0].num_read) == (NUM_ROWS, 100)


# Several tasks

TASKS = """tasks {
  task_towers { tower_name: "ctr" label_name: "click" losses { binary_cross_entropy {} } %s }
  task_towers { tower_name: "stars" label_name: "stars" losses { softmax_cross_entropy {} } num_class: 3 }
}"""
STARS = 'label_fields: "stars"'


def test_a_feature_that_groups_the_rows_of_a_task_is_used(found, rows):
    features = {"group": ["user", "price"], "data": STARS, "stars": np.arange(NUM_ROWS) % 3}
    assert only(found(USER, WORD, PRICE, model=TASKS % "", **features)).feature == "word"
    model = TASKS % 'metrics { grouped_auc { grouping_key: "word" } }'
    assert found(USER, WORD, PRICE, model=model, **features) == []


def test_the_label_of_each_task_is_looked_at(found):
    finding = only(found(model=TASKS % "", data=STARS, stars=np.arange(NUM_ROWS) % 5))
    assert (finding.level, finding.feature, finding.fix) == (Level.ERROR, "stars", "num_class: 5")


def test_of_several_labels_the_one_that_is_given_away_is_named(found, rows):
    towers = """tasks {
      task_towers { tower_name: "ctr" label_name: "click" losses { binary_cross_entropy {} } }
      task_towers { tower_name: "cvr" label_name: "buy" losses { binary_cross_entropy {} } }
    }"""
    buy = (rows["price"] > 0.5).astype(int)
    finding = only(found(model=towers, data='label_fields: "buy"', buy=buy))
    assert (finding.level, finding.feature) == (Level.WARNING, "price")
    assert "column 'price' gives the label 'buy' away" in finding.what
