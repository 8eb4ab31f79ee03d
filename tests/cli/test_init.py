"""`tzrec init`: a config that trains at once, and says what it was made from."""

from itertools import pairwise
from pathlib import Path

import draft_data
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from tzrec_core.config import parse_config
from tzrec_core.data.draft import draft_config
from tzrec_core.plugins import ModelSpec, Registry, Selection, use_registry

MANIFEST = str(Path(draft_data.__file__).with_name("draft.py"))


@pytest.fixture
def table_file(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(draft_data.every_type(), path)
    return path


@pytest.fixture
def draft(tzrec, tmp_path, monkeypatch):
    """Runs init in a folder of its own; gives the result and, when there is one, the config's text."""
    monkeypatch.chdir(tmp_path)

    def run(data, *arguments, label="click", model="first"):
        result = tzrec(
            "--plugin", MANIFEST, "init", "--data", str(data), "--label", label, "--model", model, *arguments
        )
        written = tmp_path / f"{model}.config"
        return result, written.read_text(encoding="utf-8") if written.exists() else ""

    return run


def features_of(text):
    """The text of each feature by its name, and the comment above it."""
    lines = text.splitlines()
    found = {}
    for before, line in pairwise(lines):
        if line.startswith("feature_configs"):
            found[line.split('feature_name: "')[1].split('"')[0]] = (line, before)
    return found


def train(tzrec, config, *arguments):
    result = tzrec("--plugin", MANIFEST, "validate", config)
    assert result.code == 0, result.err
    result = tzrec("--plugin", MANIFEST, "train", config, "--set", "train_config.num_steps=3", *arguments)
    assert result.code == 0, result.err
    return result


def test_the_config_is_written_and_the_next_commands_are_told(draft, table_file):
    result, text = draft(table_file)
    assert result.code == 0, result.err
    assert "first.config is written" in result.out
    assert "tzrec train first.config" in result.out
    assert "after a look at all 400 rows" in text
    assert 'model_dir: "runs/first"' in text


def test_every_type_of_column_becomes_a_feature_or_a_reason_why_not(draft, table_file):
    _, text = draft(table_file)
    found = features_of(text)
    expected = {
        "user_id": "id_feature", "item_id": "id_feature", "gender": "id_feature", "is_new": "id_feature",
        "age": "raw_feature", "income": "raw_feature", "ratio": "raw_feature", "cost": "raw_feature",
        "brand": "id_feature", "genres": "id_feature", "topics": "id_feature", "vector": "raw_feature",
        "fixed": "raw_feature", "likes": "id_feature", "hist__item_id": "id_feature", "bytes": "id_feature",
    }  # fmt: skip
    assert {name: line.split()[2] for name, (line, _) in found.items()} == expected
    left_out = draft_data.LEFT_OUT | {
        "hist__dwell": "a vector has one length",
        "nested": "only groups of type SEQUENCE read one",
    }
    for name, reason in left_out.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f'#   "{name}": ')]
        assert reason in line


def test_a_feature_is_sized_and_cut_by_what_was_seen(draft, table_file):
    _, text = draft(table_file)
    found = {name: (line, comment) for name, (line, comment) in features_of(text).items()}
    line, comment = found["user_id"]
    assert comment == "# 40 distinct, 0% null, 1000..1039"
    assert "hash_bucket_size: 400 " in line
    assert 'vocab_list: ["f", "m"]' in found["gender"][0]
    assert 'vocab_list: ["0", "1"]' in found["is_new"][0]
    assert 'separator: "|" pooling: "mean"' in found["genres"][0]
    assert '"folk\'s"' in found["genres"][0]
    assert "weighted: true" in found["likes"][0]
    assert "value_dim: 4 mlp {} embedding_dim: 16 normalizer: " in found["vector"][0]
    assert "normalizer" not in found["fixed"][0]
    assert found["income"][0].count(",") >= 8


def test_missing_numbers_have_a_bucket_of_their_own(draft, table_file):
    _, text = draft(table_file)
    (age,) = [f.raw_feature for f in parse_config_of(text).feature_configs if f.raw_feature.feature_name == "age"]
    assert float(age.default_value) < age.boundaries[0] < 18 < age.boundaries[1]


def parse_config_of(text):
    """The features alone, which any set of plugins can parse."""
    return parse_config(text.partition("model_config {")[0], partial=True)


@pytest.mark.parametrize("model", ["first", "steps", "jagged", "towers"])
def test_the_config_trains_at_once_whatever_groups_the_model_reads(draft, tzrec, table_file, model):
    result, _ = draft(table_file, "--eval-data", str(table_file), model=model)
    assert result.code == 0, result.err
    assert "auc" in train(tzrec, f"{model}.config").out


@pytest.mark.parametrize(
    ("label", "loss", "metric"),
    [
        ("click", "binary_cross_entropy", "auc"),
        ("stars", "softmax_cross_entropy", "accuracy"),
        ("price", "l2_loss", "mean_absolute_error"),
    ],
)
def test_the_label_decides_loss_and_metrics(draft, tzrec, table_file, label, loss, metric):
    _, text = draft(table_file, "--eval-data", str(table_file), label=label)
    assert f"losses {{ {loss} {{}} }}" in text
    assert ("num_class: 4" in text) == (label == "stars")
    assert metric in train(tzrec, "first.config").out


def test_ratings_from_one_to_five_are_numbers(draft, table_file):
    table = draft_data.every_type()
    pq.write_table(table.append_column("rating", pa.array(table["stars"].to_numpy() + 1)), table_file)
    assert "losses { l2_loss {} }" in draft(table_file, label="rating")[1]


def test_a_group_of_sequences_holds_steps_of_one_length_behind_their_query(draft, table_file):
    _, text = draft(table_file, model="steps")
    (group,) = [line for line in text.splitlines() if "SEQUENCE" in line and "feature_groups" in line]
    assert '["item_id", "topics", "hist__item_id", "hist__dwell", "nested"]' in group
    found = features_of(text)
    assert 'sequence_id_feature { feature_name: "hist__item_id"' in found["hist__item_id"][0]
    assert "sequence_length: 5 " in found["hist__item_id"][0]
    for name in ("item_id", "hist__item_id"):
        assert 'hash_bucket_size: 300 embedding_name: "item_id_emb"' in found[name][0]
    assert 'sequence_raw_feature { feature_name: "hist__dwell"' in found["hist__dwell"][0]
    assert "value_dim: 0" in found["nested"][0]


def test_groups_that_the_model_names_itself_are_written_into_its_settings(draft, table_file):
    _, text = draft(table_file, model="towers")
    user, others = [line for line in text.splitlines() if "feature_groups" in line]
    assert 'group_name: "user_tower"' in user
    assert "user_id" in user
    assert "item_id" not in user.replace("hist__item_id", "")
    assert 'group_name: "others"' in others
    assert 'input: "user_tower"' in text


def test_a_multitask_model_has_a_tower_for_each_label(draft, tzrec, table_file):
    result, text = draft(table_file, "--label", "stars", "--label", "price", model="tasks")
    assert result.code == 0, result.err
    assert [line.split()[1] for line in text.splitlines() if "label_fields" in line] == [
        '"click"',
        '"stars"',
        '"price"',
    ]
    assert not {"click", "stars", "price"} & set(features_of(text))
    towers = [" ".join(part.split()) for part in text.split("task_towers {")[1:]]
    names = ("click", "stars", "price")
    objectives = ("losses { binary_cross_entropy { } }", "num_class: 4", "losses { l2_loss { } }")
    for tower, name, objective in zip(towers, names, objectives, strict=True):
        assert tower.startswith(f'tower_name: "{name}" label_name: "{name}"')
        assert objective in tower
    train(tzrec, "tasks.config")


def test_a_model_of_one_task_takes_one_label(draft, table_file):
    result, _ = draft(table_file, "--label", "stars")
    assert (result.code, "first predicts one label, not 2" in result.err) == (2, True)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ";")])
def test_a_text_file_tells_its_delimiter(draft, tzrec, tmp_path, suffix, delimiter):
    table = draft_data.every_type().select(["user_id", "gender", "genres", "income", "click"])
    path = tmp_path / f"train.{suffix}"
    with pa.output_stream(path, compression="detect") as file:
        pa_csv.write_csv(table, file, pa_csv.WriteOptions(delimiter=delimiter))
    _, text = draft(path)
    assert set(features_of(text)) == {"user_id", "gender", "genres", "income"}
    train(tzrec, "first.config")


def test_of_a_large_table_a_part_is_read_and_no_vocabulary_is_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tzrec_core.data.draft._MAX_ROWS", 100)
    path = tmp_path / "train.parquet"
    pq.write_table(draft_data.every_type(), path, row_group_size=50)
    with use_registry(Registry.find(Selection(only=frozenset(), files=(MANIFEST,)))) as models:
        text = draft_config(models.get(ModelSpec, "first"), str(path), labels=["click"], model_dir="run")
    assert "after a look at 100 of the 400 rows" in text
    assert "vocab_list: [" not in text


def test_an_earlier_config_is_kept_unless_it_may_be_replaced(draft, table_file, tmp_path):
    (tmp_path / "first.config").write_text("mine")
    result, text = draft(table_file)
    assert (result.code, text) == (2, "mine")
    assert "--overwrite" in result.err
    result, text = draft(table_file, "--overwrite")
    assert (result.code, text != "mine") == (0, True)


def test_the_config_goes_where_output_says(draft, table_file, tmp_path):
    result, _ = draft(table_file, "--output", str(tmp_path / "my.config"))
    assert result.code == 0
    assert 'model_dir: "runs/my"' in (tmp_path / "my.config").read_text()
    result, _ = draft(table_file, "--output", str(tmp_path / "nowhere" / "my.config"))
    assert result.code == 2
    assert "cannot be written" in result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "clik"}, "--label 'clik' is not a column of"),
        ({"label": "clik"}, "Did you mean 'click'?"),
        ({"model": "frist"}, "Did you mean 'first'?"),
        ({"model": "matcher"}, "writes configs of rank and multitask models, and matcher is a match model"),
        ({"model": "no_list"}, "no_list has no list of towers that tzrec init could fill"),
        ({"model": "fussy"}, "no config can be drafted for fussy"),
        ({"label": "twin"}, "holds string, such as 'no' and 'yes'. Write it as numbers"),
        ({"label": "age"}, "--label 'age' is null in "),
        ({"label": "country"}, "--label 'country' holds string"),
        ({"label": "topics"}, "Write it as numbers"),
        ({"label": "seen_at"}, "is of type timestamp[us], which cannot be read. Use numbers"),
    ],
)
def test_what_cannot_be_is_told_on_one_screen_with_the_nearest_name(draft, table_file, change, words):
    result, text = draft(table_file, **change)
    assert (result.code, text) == (2, "")
    assert words in result.err
    assert len(result.err.splitlines()) < 20


def test_a_file_that_is_not_there_shows_its_neighbours(draft, table_file):
    result, _ = draft(table_file.with_name("trian.parquet"))
    assert result.code == 2
    assert "train.parquet" in result.err


def test_a_label_without_two_values_is_refused(draft, table_file):
    table = draft_data.every_type()
    pq.write_table(table.set_column(table.schema.get_field_index("click"), "click", pa.array([1] * 400)), table_file)
    assert "is 1 in every row: there is nothing to learn" in draft(table_file)[0].err


def test_numbers_that_float32_does_not_hold_are_left_out(draft, table_file):
    income = draft_data.every_type()["income"].to_numpy().copy()
    income[7] = float("inf")
    table = draft_data.every_type().append_column("endless", pa.array(income))
    pq.write_table(table, table_file)
    assert '#   "endless": holds numbers beyond 3.4e38, the largest float32, or infinite ones' in draft(table_file)[1]


def test_a_map_to_texts_is_left_out(draft, table_file):
    maps = pa.array([[("k", str(number))] for number in range(400)], pa.map_(pa.string(), pa.string()))
    pq.write_table(draft_data.every_type().append_column("notes", maps), table_file)
    assert '#   "notes": maps to texts. Map to numbers' in draft(table_file)[1]


def test_names_and_words_that_need_escapes_are_written_so(draft, tzrec, table_file):
    words = ['a "b"', r"c\d", "e\nf\n}", "it's", "# no comment", "{"]
    column = pa.array([words[number % 6] for number in range(400)])
    pq.write_table(draft_data.every_type().select(["click"]).append_column('odd "name"\n: 1', column), table_file)
    result, _ = draft(table_file)
    assert result.code == 0, result.err
    train(tzrec, "first.config")


def test_a_table_without_a_usable_column_says_why_of_each(draft, table_file):
    pq.write_table(draft_data.every_type().select(["country", "row_id", "click"]), table_file)
    result, _ = draft(table_file)
    assert result.code == 2
    assert "the same in every row" in result.err
    assert "400 of 400 values are distinct" in result.err


def test_a_model_of_sequences_needs_lists(draft, table_file):
    pq.write_table(draft_data.every_type().select(["user_id", "age", "click"]), table_file)
    result, _ = draft(table_file, model="steps")
    assert result.code == 2
    assert "needs a group 'clicks' of type SEQUENCE: columns of lists" in result.err


def test_the_table_to_evaluate_on_has_the_columns_of_the_features(draft, table_file, tmp_path):
    other = tmp_path / "eval.parquet"
    pq.write_table(draft_data.every_type().drop_columns(["age"]), other)
    result, text = draft(table_file, "--eval-data", str(other))
    assert (result.code, text) == (2, "")
    assert "there is no column 'age'" in result.err
