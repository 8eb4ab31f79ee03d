import importlib

import pytest

doctor = importlib.import_module("tzrec_core.cli.doctor")


@pytest.fixture
def probes(monkeypatch):
    """Replaces the probes by others, as the real ones wait for torch."""

    def replace(**codes: str) -> None:
        monkeypatch.setattr(doctor, "_PROBES", codes)

    replace(torch="print('2.13.0')")
    return replace


def rows(result) -> dict[str, dict]:
    return {row["name"]: row for row in result.json["checks"]}


def test_a_healthy_installation(tzrec, probes):
    result = tzrec("doctor")
    assert result.code == 0
    assert "BROKEN" not in result.out
    for words in ("tzrec-core", "python", "machine", "torch", "pyarrow", "TZREC_PLUGINS"):
        assert words in result.out


def test_checks_as_json(tzrec, probes):
    shown = tzrec("doctor", "--json").json
    assert set(shown) == {"ok", "checks"}
    assert shown["ok"] is True
    assert {"name": "torch", "ok": True, "detail": "2.13.0"} in shown["checks"]


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import ctypes; ctypes.string_at(0)", "died with exit code -11"),
        ("raise ImportError('libfbgemm.so: undefined symbol')", "ImportError: libfbgemm.so: undefined symbol"),
        ("import time; time.sleep(9)", "no answer after 0.5 s"),
    ],
)
def test_a_broken_library_is_a_row_and_not_the_end(tzrec, probes, monkeypatch, code, detail):
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.5 if "sleep" in code else 60)
    probes(numbers=code, torch="print('fine')")
    result = tzrec("doctor", "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    assert rows(result)["numbers"] == {"name": "numbers", "ok": False, "detail": detail}
    assert rows(result)["torch"]["ok"]
    assert "BROKEN" in tzrec("doctor").out


def test_a_broken_fbgemm_says_what_to_do_without_a_gpu(tzrec, probes):
    probes(fbgemm="raise ImportError('libcuda.so.1: cannot open shared object file')")
    detail = rows(tzrec("doctor", "--json"))["fbgemm"]["detail"]
    assert detail.startswith("ImportError: libcuda.so.1: cannot open shared object file; without a GPU run `pip")


def test_a_missing_library_says_how_to_get_it(tzrec, probes, monkeypatch):
    monkeypatch.setattr(doctor, "_LIBRARIES", ("pyarrow", "no-such-thing"))
    result = tzrec("doctor", "--json")
    assert result.code == 1
    assert rows(result)["no-such-thing"]["detail"] == "not installed; run: pip install no-such-thing"


def test_a_broken_plugin_and_a_name_that_no_plugin_has_are_rows(tzrec, probes, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("1 / 0")
    result = tzrec("--plugin", str(path), "doctor", "--json", only="nobody")
    assert result.code == 1
    assert rows(result)[f"plugin {path}"]["detail"] == "broken: ZeroDivisionError: division by zero"
    assert "names 'nobody', which is not installed" in rows(result)["TZREC_PLUGINS"]["detail"]


@pytest.mark.slow
def test_this_installation_is_healthy(tzrec):
    result = tzrec("doctor", "--json")
    assert result.json["ok"], result.json
