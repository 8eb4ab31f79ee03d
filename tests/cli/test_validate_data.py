"""`tzrec validate --data`: what the command prints; tests/data/test_lint.py has the findings."""

from pathlib import Path

import pyarrow.parquet as pq
import tiny_data

GUIDE = (Path(__file__).parents[2] / "registry_docs/guides/command_line.md").read_text(encoding="utf-8")
TOO_SMALL = ("--set", "feature_configs[0].id_feature.num_buckets=15")


def test_warnings_are_shown_with_exit_code_0(tiny, config_file):
    result = tiny("validate", str(config_file), "--data")
    assert result.code == 0, result.err
    assert "tiny.config is valid" in result.out
    assert "train.parquet: all 72 rows read, findings: 1" in result.out
    assert "columns that nothing reads: weight, row" in result.out


def test_an_error_ends_with_exit_code_2_and_its_fix(tiny, config_file):
    result = tiny("validate", str(config_file), "--data", *TOO_SMALL)
    assert result.code == 2
    assert "ids from 0 to 19" in result.out
    assert "num_buckets: 20" in result.out


def test_another_table_can_be_named(tiny, config_file, tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(tiny_data.table(30, 3).drop_columns(["price", "row", "weight"]), other)
    result = tiny("validate", str(config_file), "--data", str(other))
    assert result.code == 2
    assert "other.parquet: all 30 rows read, findings: 1" in result.out
    assert "there is no column 'price'" in result.out


def test_the_table_may_stand_before_the_config(tiny, config_file, tmp_path):
    behind = tiny("validate", str(config_file), "--data", str(tmp_path / "train.parquet"))
    before = tiny("validate", "--data", str(tmp_path / "train.parquet"), str(config_file))
    assert (before.code, before.out) == (0, behind.out)
    folder = tmp_path / "tables"
    folder.mkdir()
    (tmp_path / "train.parquet").rename(folder / "one.parquet")
    assert tiny("validate", "--data", str(folder), str(config_file)).out.count("all 72 rows read") == 1


def test_findings_as_json_have_the_keys_that_the_guide_tells(tiny, config_file):
    result = tiny("validate", str(config_file), "--data", "--json", *TOO_SMALL)
    assert result.code == 2
    shown = result.json
    assert (shown["ok"], shown["problems"], shown["model"]) == (False, [], "tiny")
    assert (shown["rows"], shown["rows_read"]) == (72, 72)
    error, warning = shown["findings"]
    assert (error["level"], error["feature"], error["number"]) == ("error", "user", 19)
    assert error["fix"] == "num_buckets: 20"
    assert warning["level"] == "warning"
    section = GUIDE.partition("\n`validate`: ")[2].partition("\n`train`: ")[0]
    for key in [*shown, *error]:
        assert f"`{key}`" in section, key


def test_mistakes_of_the_config_come_before_any_look_at_data(tiny, config_file, tmp_path):
    (tmp_path / "train.parquet").unlink()
    change = "model_config.feature_groups[0].feature_names=[usr, item]"
    result = tiny("validate", str(config_file), "--data", "--set", change)
    assert result.code == 2
    assert "'usr' is not a feature" in result.err
    assert "train.parquet" not in result.err


def test_a_table_that_is_not_there_is_told(tiny, config_file, tmp_path):
    result = tiny("validate", str(config_file), "--data", str(tmp_path / "trian.parquet"))
    assert result.code == 2
    assert "no file matches" in result.err


def test_a_table_without_the_option_is_refused(tiny, config_file):
    result = tiny("validate", str(config_file), "train.parquet")
    assert result.code == 2
    assert "--data train.parquet" in result.err
