import json
import os
import subprocess
import sys
import textwrap

import pytest

from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.plugins import Registry, Selection, State
from tzrec_core.plugins.discovery import discover


def plugin_of(registry, distribution):
    (found,) = [p for p in registry.plugins if p.distribution == distribution]
    return found


def lines(registry):
    return "\n".join(registry.problems())


@pytest.fixture
def make_dist(tmp_path, monkeypatch):
    """Writes a distribution as an installer would, with one manifest, and finds plugins there."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def make(name, manifest="", *, requires="Requires-Dist: tzrec-core>=0.1,<0.2", entry=None, metadata=True):
        package = name.replace("-", "_")
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "plugin.py").write_text(textwrap.dedent(manifest))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        if metadata:
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}\n"
            (info / "METADATA").write_text(text)
        text = f"[tzrec.plugins]\n{entry or package} = {package}.plugin\n"
        (info / "entry_points.txt").write_text(text)

    make.find = lambda **selection: Registry.find(Selection(**selection), search_path=[str(tmp_path)])
    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


HEALTHY = """
    from tzrec_core.plugins import ModelSpec, hookimpl

    @hookimpl
    def tzrec_specs():
        return [ModelSpec(name="{name}", target="a:B", config="a_pb2:B", summary="s")]
"""

# The states, with the words that the user must see


def test_an_import_error_in_a_manifest_is_one_line_and_keeps_its_cause(find_plugins):
    registry = find_plugins("tzrec-import-error")
    plugin = plugin_of(registry, "tzrec-import-error")
    assert plugin.state is State.BROKEN
    assert isinstance(plugin.cause, ModuleNotFoundError)
    assert lines(registry) == (
        "plugin tzrec-import-error is broken: ModuleNotFoundError: No module named 'a_module_that_nobody_has'"
    )


def test_a_misspelt_hook_names_the_nearest_one(find_plugins):
    registry = find_plugins("tzrec-misspelt-hook")
    assert plugin_of(registry, "tzrec-misspelt-hook").state is State.BROKEN
    assert "implements 'tzrec_spec', which is not a hook. Did you mean 'tzrec_specs'?" in lines(registry)


def test_a_hook_without_its_marker_is_broken(make_dist):
    make_dist("acme-unmarked", "def tzrec_specs():\n    return []\n")
    assert "defines tzrec_specs without @hookimpl" in lines(make_dist.find())


def test_a_manifest_without_any_hook_is_noted_with_what_may_be_meant(make_dist):
    make_dist("acme-empty", "def tzrec_spec():\n    return []\n")
    registry = make_dist.find()
    assert plugin_of(registry, "acme-empty").state is State.OK
    assert "offers nothing; is 'tzrec_spec' meant to be the hook tzrec_specs" in lines(registry)


def test_a_plugin_for_another_core_is_incompatible_and_not_imported(find_plugins):
    registry = find_plugins("tzrec-other-core")
    plugin = plugin_of(registry, "tzrec-other-core")
    assert (plugin.state, plugin.requires) == (State.INCOMPATIBLE, "<10,>=9")
    assert "tzrec_other_core.plugin" not in sys.modules
    assert "needs tzrec-core<10,>=9, but 0.1.0 is installed" in lines(registry)
    assert "pip install --upgrade" in lines(registry)


def test_a_bound_that_does_not_apply_here_is_no_bound(make_dist):
    make_dist("acme-marked", HEALTHY.format(name="m"), requires='Requires-Dist: tzrec-core>=9; extra == "x"')
    assert plugin_of(make_dist.find(), "acme-marked").state is State.OK


def test_a_slow_manifest_is_noted_with_its_seconds(find_plugins):
    registry = find_plugins("tzrec-slow-import")
    assert plugin_of(registry, "tzrec-slow-import").state is State.OK
    (note,) = plugin_of(registry, "tzrec-slow-import").notes
    assert note.endswith("s to import; a manifest should only declare specs")
    assert 0.5 < float(note.split()[1]) < 10


def test_a_manifest_that_imports_torch_is_noted(find_plugins, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("")  # the real one takes seconds
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    registry = find_plugins("tzrec-torch-import")
    assert plugin_of(registry, "tzrec-torch-import").state is State.OK
    assert "imports torch in its manifest" in lines(registry)


def test_a_bad_spec_says_all_that_is_wrong_with_it(find_plugins):
    registry = find_plugins("tzrec-bad-spec")
    assert plugin_of(registry, "tzrec-bad-spec").state is State.BROKEN
    text = lines(registry)
    assert "model 'bad_spec': target 'tzrec_bad_spec.model.BadSpec' is not of the form 'module:Class'" in text
    assert "'fly'" in text
    assert "summary is empty" in text


def test_a_spec_of_an_unknown_kind_is_noted_and_the_rest_of_the_plugin_works(find_plugins):
    registry = find_plugins("tzrec-future-spec")
    plugin = plugin_of(registry, "tzrec-future-spec")
    assert (plugin.state, [s.name for s in plugin.specs]) == (State.OK, ["future"])
    assert "offers a HologramSpec, a kind that tzrec-core 0.1.0 does not know" in lines(registry)


def test_a_clash_is_a_conflict_of_both_and_names_the_other(find_plugins):
    registry = find_plugins("tzrec-clash-one", "tzrec-clash-two")
    one, two = (plugin_of(registry, f"tzrec-clash-{n}") for n in ("one", "two"))
    assert (one.state, two.state) == (State.CONFLICT, State.CONFLICT)
    assert one.reason == "model 'clash' is also offered by tzrec-clash-two"
    assert two.reason == "model 'clash' is also offered by tzrec-clash-one"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("this is no python", "SyntaxError"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise KeyError", "KeyError"),
    ],
)
def test_however_a_manifest_fails_it_is_one_line_and_the_others_go_on(make_dist, body, words):
    make_dist("acme-bad", body)
    make_dist("acme-good", HEALTHY.format(name="good"))
    registry = make_dist.find()
    (line,) = registry.problems()
    assert words in line
    assert "\n" not in line
    assert plugin_of(registry, "acme-good").state is State.OK


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("ModelSpec(name='m', target='a:B', config='a:B', summary='s')", "returned a ModelSpec, not a list"),
        ("{'m': 1}", "returned a dict, not a list of specs"),
        (
            "[ModelSpec(name='m', target='a:B', config='a:B', summary='s')] * 2",
            "tzrec_specs offers two models called 'm'",
        ),
        ("[ModelSpec(name='m', target='a:B', config='a:B', summary='s', groups=3)]", "groups 3 is not a tuple"),
        ("[ModelSpec('m')]", "TypeError"),
    ],
)
def test_a_hook_that_returns_the_wrong_thing_is_broken_with_the_reason(make_dist, returned, words):
    make_dist(
        "acme-bad",
        f"""
        from tzrec_core.plugins import ModelSpec, hookimpl

        @hookimpl
        def tzrec_specs():
            return {returned}
        """,
    )
    assert words in lines(make_dist.find())


def test_a_hook_with_arguments_that_it_does_not_get_is_broken(make_dist):
    make_dist(
        "acme-bad",
        "from tzrec_core.plugins import hookimpl\n\n@hookimpl\ndef tzrec_specs(config):\n    return []\n",
    )
    assert "config" in lines(make_dist.find())
    assert plugin_of(make_dist.find(), "acme-bad").state is State.BROKEN


def test_debris_of_an_interrupted_removal_is_no_plugin(make_dist):
    make_dist("acme-gone", HEALTHY.format(name="gone"), metadata=False)
    assert make_dist.find().plugins == []


def test_a_plugin_installed_the_old_way_is_found(make_dist, tmp_path):
    make_dist("acme-old", HEALTHY.format(name="old"))
    info = tmp_path / "acme_old-1.0.dist-info"
    (info / "METADATA").rename(info / "PKG-INFO")
    info.rename(tmp_path / "acme_old.egg-info")
    assert plugin_of(make_dist.find(), "acme-old").state is State.OK


def test_an_older_copy_further_down_the_path_is_shadowed(make_dist, tmp_path):
    make_dist("acme-good", HEALTHY.format(name="good"))
    other = tmp_path / "other" / "acme_good-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: Acme.Good\nVersion: 0.1\n")
    (other / "entry_points.txt").write_text("[tzrec.plugins]\nacme_good = acme_good.plugin\n")
    plugins, _ = discover(Selection(), search_path=[str(tmp_path), str(tmp_path / "other")])
    assert [p.version for p in plugins] == ["1.0"]


def test_two_plugins_with_one_entry_point_name_are_both_noted(make_dist):
    make_dist("acme-a", HEALTHY.format(name="a"), entry="same")
    make_dist("acme-b", HEALTHY.format(name="b"), entry="same")
    registry = make_dist.find()
    assert [p.state for p in registry.plugins] == [State.OK, State.OK]
    assert lines(registry).count("the entry-point name 'same' is taken by acme-a and acme-b") == 2


def test_thirty_plugins_are_found_whatever_one_of_them_does(make_dist):
    for number in range(30):
        make_dist(f"acme-{number}", "1 / 0" if number == 7 else HEALTHY.format(name=f"m{number}"))
    registry = make_dist.find()
    states = {p.distribution: p.state for p in registry.plugins}
    assert len(states) == 30
    assert {d for d, s in states.items() if s is not State.OK} == {"acme-7"}
    assert len(registry.problems()) == 1


# The selection


def select(monkeypatch, text):
    if text is None:
        monkeypatch.delenv("TZREC_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("TZREC_PLUGINS", text)
    monkeypatch.delenv("TZREC_PLUGIN_FILES", raising=False)
    return Selection.from_environment()


@pytest.mark.parametrize(
    ("text", "enabled"),
    [
        (None, ["acme-a", "acme-b", "acme-c"]),
        ("", []),
        (" , ", []),
        ("acme_a", ["acme-a"]),
        ("acme_a, acme-c", ["acme-a", "acme-c"]),
        ("-acme_a", ["acme-b", "acme-c"]),
        ("-acme-a,-acme_b", ["acme-c"]),
        ("nobody", []),
        ("-nobody", ["acme-a", "acme-b", "acme-c"]),
    ],
)
def test_tzrec_plugins_selects_by_entry_point_or_distribution_name(make_dist, monkeypatch, tmp_path, text, enabled):
    for name in "abc":
        make_dist(f"acme-{name}", HEALTHY.format(name=name))
    registry = Registry.find(select(monkeypatch, text), search_path=[str(tmp_path)])
    assert [p.distribution for p in registry.plugins if p.state is State.OK] == enabled
    assert {p.state for p in registry.plugins if p.distribution not in enabled} <= {State.DISABLED}


def test_a_disabled_plugin_is_not_imported_and_costs_no_line(make_dist):
    make_dist("acme-bad", "1 / 0")
    registry = make_dist.find(without=frozenset({"acme-bad"}))
    assert "acme_bad.plugin" not in sys.modules
    assert registry.problems() == []


def test_names_to_use_and_names_to_leave_out_cannot_be_mixed(monkeypatch):
    with pytest.raises(ConfigError, match=r"'a,-b' mixes .* Write either 'a,b' or '-a,-b'"):
        select(monkeypatch, "a,-b")


def test_an_unknown_name_in_tzrec_plugins_is_noted_with_the_nearest(make_dist):
    make_dist("acme-good", HEALTHY.format(name="good"))
    registry = make_dist.find(only=frozenset({"acme_goood"}))
    assert registry.problems() == [
        "TZREC_PLUGINS names 'acme_goood', which is not installed. Did you mean 'acme_good'?"
    ]


def test_the_core_itself_cannot_be_left_out(make_dist):
    registry = make_dist.find(only=frozenset())
    assert registry.core.state is State.OK
    assert len(registry.core.specs) > 20


# Manifests given as files


@pytest.fixture
def manifest_file(tmp_path):
    before, path_before = set(sys.modules), list(sys.path)
    path = tmp_path / "my_plugin.py"
    path.write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass

            from tzrec_core.plugins import ModelSpec, hookimpl

            @dataclass(frozen=True)
            class Config:
                width: int = 3

            class Mine:
                pass

            @hookimpl
            def tzrec_specs():
                return [ModelSpec("mine", "my_plugin:Mine", "my_plugin:Config", summary="s")]
            """
        )
    )
    yield path
    sys.path[:] = path_before
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_manifest_file_is_a_plugin_and_its_targets_import(manifest_file, monkeypatch):
    monkeypatch.setenv("TZREC_PLUGIN_FILES", str(manifest_file))
    monkeypatch.setenv("TZREC_PLUGINS", "")
    registry = Registry.find(search_path=[])
    (plugin,) = registry.plugins
    assert (plugin.state, plugin.name, plugin.distribution) == (State.OK, "my_plugin", str(manifest_file))
    from tzrec_core.plugins import ModelSpec

    assert registry.load(registry.get(ModelSpec, "mine")).__name__ == "Mine"


def test_two_manifest_files_are_separated_as_in_a_path(monkeypatch):
    monkeypatch.setenv("TZREC_PLUGIN_FILES", os.pathsep.join(["a.py", "b.py"]))
    assert Selection.from_environment().files == ("a.py", "b.py")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("absent.py", None, "there is no such file"),
        ("plugin.txt", "x", "not a Python file"),
        ("wrong.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_manifest_file_that_cannot_be_used_is_broken(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    registry = Registry.find(Selection(files=(str(path),)), search_path=[])
    assert registry.plugins[0].state is State.BROKEN
    assert words in lines(registry)
    assert path.stem not in sys.modules


def test_a_manifest_file_does_not_take_the_name_of_a_loaded_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text("")
    registry = Registry.find(Selection(files=(str(path),)), search_path=[])
    assert sys.modules["json"] is json
    assert registry.plugins[0].state is State.BROKEN
    assert "json" in registry.plugins[0].reason


# Strict


def test_strict_refuses_a_broken_plugin_and_an_unknown_name_but_no_note(find_plugins):
    with pytest.raises(PluginError, match=r"--strict-plugins: .*tzrec-import-error is broken"):
        find_plugins("tzrec-import-error").require_ok()
    with pytest.raises(PluginError, match="not installed"):
        find_plugins("tzrec-nowhere").require_ok()
    find_plugins("tzrec-future-spec").require_ok()


def test_strict_takes_what_is_disabled_on_purpose(make_dist):
    make_dist("acme-bad", "1 / 0")
    make_dist.find(without=frozenset({"acme-bad"})).require_ok()


# Side effects


def test_discovery_imports_no_torch_and_leaves_the_process_alone(installed_plugins):
    code = f"""
        import logging, os, random, sys, threading, warnings
        state = lambda: (dict(os.environ), random.getstate(), logging.root.level, list(logging.root.handlers),
                         os.getcwd(), threading.active_count(), list(warnings.filters))
        sys.path.insert(0, {str(installed_plugins)!r})
        before = state()
        from tzrec_core.plugins import Registry, Selection
        registry = Registry.find(Selection(without=frozenset({{"tzrec-torch-import", "tzrec-slow-import"}})))
        assert {{"tzrec-plain", "acme-ranking"}} <= {{p.distribution for p in registry.plugins if p.specs}}
        assert state() == before
        assert not {{"torch", "numpy", "pyarrow"}} & set(sys.modules), "too much is imported"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
