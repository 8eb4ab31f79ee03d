import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_a_folder_and_tells_the_next_three_commands(tzrec, here):
    result = tzrec("new-plugin", "deep-net")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "./tzrec-deep-net is written. Next:",
        "  pip install -e ./tzrec-deep-net",
        "  tzrec check tzrec-deep-net",
        "  tzrec init --data TABLE --label COLUMN --model deep_net",
    ]
    assert (here / "tzrec-deep-net/tzrec_deep_net/config_pb2.py").is_file()
    assert not (here / "tzrec-deep-net/LICENSE").exists()


def test_a_multitask_model_has_a_config_of_several_labels(tzrec, here):
    last = tzrec("new-plugin", "shared", "--task", "multitask").out.splitlines()[-1]
    assert last == "  tzrec init --data TABLE --label COLUMN --label COLUMN --model shared"


def test_a_model_that_init_has_no_config_for_starts_from_its_example(tzrec, here):
    assert tzrec("new-plugin", "two-tower", "--task", "match").out.splitlines()[-1] == "  tzrec show-model two_tower"


def test_the_flags_choose_the_files(tzrec, here):
    assert tzrec("new-plugin", "din", "--task", "rank", "--dataclass", "--standalone").code == 0
    assert (here / "tzrec-din/tzrec_din/config.py").is_file()
    assert not (here / "tzrec-din/tzrec_din/config.proto").exists()
    assert (here / "tzrec-din/LICENSE").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Din",), "lower-case letters and digits"),
        (("lambda",), "is a word of Python"),
        (("deepfm",), "tzrec-deepfm has a model 'deepfm'"),
        (("train",), "'train' is a command of tzrec"),
        (("list_models",), "'list-models' is a command of tzrec"),
        (("losses",), "'losses' is a part of model_config"),
        (("core",), "a Python package tzrec_core is installed"),
        (("din", "--task", "mach"), "--task 'mach' is not one of rank"),
        (("din", "--task", "tree"), "--task tree: the core has no base class for such models yet"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is(tzrec, here, arguments, words):
    result = tzrec("new-plugin", *arguments, only=None)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert not list(here.iterdir())


def test_a_folder_that_is_there_stays_as_it_is(tzrec, here):
    (here / "tzrec-din").mkdir()
    result = tzrec("new-plugin", "din")
    assert result.code == 2
    assert "./tzrec-din exists" in result.err
    assert not list((here / "tzrec-din").iterdir())
