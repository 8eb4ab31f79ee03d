import pytest

from tzrec_core.config import parse_config
from tzrec_core.errors import ConfigError, PluginError
from tzrec_core.plugins import (
    FeatureSpec,
    LossSpec,
    ModelSpec,
    Offer,
    Plugin,
    Registry,
    State,
    Task,
    get_model,
    list_models,
    load_class,
    registry,
    use_registry,
)


def model(name, **changes):
    settings = {"target": "json:loads", "config": "tzrec_core.protos.module_pb2:MLP", "summary": "s"}
    return ModelSpec(**{"name": name, **settings, **changes})


def plugin(distribution, *specs, **changes):
    return Plugin(**{"name": distribution, "distribution": distribution, "specs": list(specs), **changes})


def words_of(error, *args):
    with pytest.raises(error) as caught:
        get_model(*args)
    return str(caught.value)


# Names


def test_a_model_is_found_by_name_alias_and_qualified_name():
    spec = model("deepfm", aliases=("dfm",))
    with use_registry(Registry([plugin("tzrec-deepfm", spec)])):
        assert get_model("deepfm") is spec
        assert get_model("dfm") is spec
        assert get_model("tzrec-deepfm:deepfm") is spec
        assert get_model("tzrec-deepfm:dfm") is spec


def test_models_are_listed_once_sorted_by_pattern_and_task():
    models = [model("dssm", task=Task.MATCH), model("deepfm", aliases=("dfm",)), model("xdeepfm")]
    with use_registry(Registry([plugin("tzrec-zoo", *models)])):
        assert list_models() == ["deepfm", "dssm", "xdeepfm"]
        assert list_models("*fm") == ["deepfm", "xdeepfm"]
        assert list_models(task=Task.MATCH) == list_models(task="match") == ["dssm"]
        with pytest.raises(ConfigError, match=r"there is no task 'mach'.*Did you mean 'match'"):
            list_models(task="mach")


def test_a_model_that_is_not_installed_names_the_package_that_ships_it():
    with use_registry(Registry([])):
        text = words_of(PluginError, "deepfm")
    assert text == "model 'deepfm' is not installed; run: pip install tzrec-deepfm. See `tzrec list-models`."


def test_a_model_that_came_with_a_later_release_says_upgrade():
    with use_registry(Registry([plugin("tzrec-deepfm")])):
        assert "run: pip install --upgrade tzrec-deepfm" in words_of(PluginError, "deepfm")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dcnn", "there is no model 'dcnn'. Did you mean 'dcn'? Installed: dcn."),
        ("deepfn", "there is no model 'deepfn'. Did you mean 'deepfm' (pip install tzrec-deepfm)?"),
        ("xyz", "there is no model 'xyz'. Installed: dcn."),
        ("tzrec-dcn:dcnn", "there is no model 'tzrec-dcn:dcnn'. Did you mean 'dcn'?"),
        ("nobody:dcn", "there is no model 'nobody:dcn'. Did you mean 'dcn'?"),
        ("tzrec_dcn__dcn", "there is no model 'tzrec_dcn__dcn'. Did you mean 'dcn'?"),
        ("", "there is no model ''."),
        (":", "there is no model ':'."),
    ],
)
def test_an_unknown_model_names_the_nearest_and_the_listing(name, words):
    with use_registry(Registry([plugin("tzrec-dcn", model("dcn"))])):
        text = words_of(ConfigError, name)
    assert words in text
    assert text.endswith("See `tzrec list-models`.")


def test_without_any_plugin_the_error_says_that_none_is_installed():
    with use_registry(Registry([])):
        assert "Installed: none." in words_of(ConfigError, "xyz")


def test_a_retired_name_names_what_replaced_it():
    with use_registry(Registry([plugin("tzrec-new", model("new", replaces=("old",)))])):
        assert "model 'old' was replaced by 'new'." in words_of(ConfigError, "old")


def test_another_kind_says_its_own_name_and_listing():
    with use_registry(Registry([])), pytest.raises(ConfigError) as caught:
        registry().get(LossSpec, "binary_cross_entropi")
    assert "there is no loss 'binary_cross_entropi'. Did you mean 'binary_cross_entropy'?" in str(caught.value)
    assert "See `tzrec list-plugins`." in str(caught.value)


# Plugins that cannot be used


def test_a_model_of_a_broken_plugin_carries_the_cause():
    cause = RuntimeError("eaten")
    broken = plugin("tzrec-dcn", model("dcn"))
    broken.fail(State.BROKEN, "RuntimeError: eaten", cause)
    with use_registry(Registry([broken])), pytest.raises(PluginError) as caught:
        get_model("dcn")
    assert caught.value.__cause__ is cause
    assert str(caught.value) == (
        "model 'dcn' comes from tzrec-dcn, which is broken: RuntimeError: eaten. See `tzrec list-plugins`."
    )


def test_a_broken_plugin_of_which_nothing_is_known_is_found_by_the_list_of_packages(find_plugins):
    broken = plugin("tzrec-deepfm", name="other")
    broken.fail(State.BROKEN, "it burnt")
    with use_registry(Registry([broken])):
        assert "comes from tzrec-deepfm, which is broken: it burnt." in words_of(PluginError, "deepfm")


def test_an_unknown_model_names_the_broken_plugins_that_may_offer_it(use_plugins):
    use_plugins("tzrec-import-error", "tzrec-plain")
    text = words_of(ConfigError, "my_model")
    assert "Broken, and may offer it: tzrec-import-error." in text
    assert "Installed: plain, plain_model." in text


def test_the_model_of_an_incompatible_plugin_says_what_it_needs(use_plugins):
    use_plugins("tzrec-other-core")
    text = words_of(PluginError, "other_core")  # all that is known without an import is the plugin's own name
    assert "comes from tzrec-other-core, which is incompatible: needs tzrec-core<10,>=9" in text


def test_the_model_of_a_disabled_plugin_says_so(use_plugins):
    use_plugins(only=frozenset())
    assert words_of(PluginError, "deepfm") == (
        "model 'deepfm' comes from tzrec-deepfm, which is disabled: not enabled by TZREC_PLUGINS. "
        "To enable it, leave out --no-plugins, and unset TZREC_PLUGINS or name 'deepfm' in it. "
        "See `tzrec list-plugins`."
    )


def test_an_unknown_model_names_the_disabled_plugins_that_may_offer_it():
    disabled = plugin("acme-zoo", name="zoo")
    disabled.fail(State.DISABLED, "not enabled by TZREC_PLUGINS")
    with use_registry(Registry([disabled])):
        assert "Disabled, and may offer it: acme-zoo (see `tzrec list-plugins`)." in words_of(ConfigError, "giraffe")


def test_a_plugin_with_a_bad_spec_is_named_when_its_model_is_used(use_plugins):
    use_plugins("tzrec-bad-spec")
    assert "comes from tzrec-bad-spec, which is broken: model 'bad_spec': target" in words_of(PluginError, "bad_spec")


# Clashes


def test_a_clash_names_both_owners_and_what_to_write(use_plugins):
    use_plugins("tzrec-clash-one", "tzrec-clash-two")
    text = words_of(PluginError, "clash")
    assert "model 'clash' is offered by tzrec-clash-one and tzrec-clash-two." in text
    assert "tzrec_clash_one__clash { ... } or tzrec_clash_two__clash { ... } in configs" in text
    assert "tzrec-clash-one:clash or tzrec-clash-two:clash on the command line and in Python" in text


def test_the_qualified_names_of_a_clash_work_in_python_and_in_configs(use_plugins):
    use_plugins("tzrec-clash-one", "tzrec-clash-two")
    assert list_models() == ["tzrec-clash-one:clash", "tzrec-clash-two:clash"]
    assert get_model("tzrec-clash-two:clash").target == "tzrec_clash_two.model:Two"
    assert load_class("tzrec-clash-one:clash").__name__ == "One"
    config = parse_config("model_config { tzrec_clash_two__clash { size: 7 } }", partial=True)
    assert config.model_config.WhichOneof("model") == "tzrec_clash_two__clash"
    assert config.model_config.tzrec_clash_two__clash.size == 7
    with pytest.raises(PluginError, match="1:16: model 'clash' is offered by tzrec-clash-one and tzrec-clash-two"):
        parse_config("model_config { clash { } }", partial=True)


def test_the_official_names_of_a_clash_are_those_of_the_docs():
    ours, theirs = plugin("tzrec-deepfm", model("deepfm")), plugin("acme-deepfm", model("deepfm"))
    for order in ([ours, theirs], [theirs, ours]):
        with use_registry(Registry(order)):
            text = words_of(PluginError, "deepfm")
            assert get_model("tzrec-deepfm:deepfm") is ours.specs[0]
            config = parse_config("model_config { tzrec_deepfm__deepfm { } }", partial=True)
        assert config.model_config.HasField("tzrec_deepfm__deepfm")
        assert "tzrec-deepfm:deepfm" in text
        assert "tzrec_deepfm__deepfm { ... }" in text


def test_who_came_first_does_not_matter():
    specs = [("acme-a", "same", ()), ("acme-b", "same", ()), ("acme-c", "own", ("same",))]
    outcomes = set()
    for order in (specs, specs[::-1], specs[1:] + specs[:1]):
        made = Registry([plugin(d, model(n, aliases=a)) for d, n, a in order])
        with use_registry(made):
            states = tuple(sorted((p.distribution, p.state) for p in made.plugins))
            outcomes.add((states, words_of(PluginError, "same") and get_model("own").name, tuple(list_models())))
    assert len(outcomes) == 1


def test_a_clash_over_an_alias_leaves_the_other_names_usable():
    a, b = plugin("acme-a", model("x")), plugin("acme-b", model("y", aliases=("x",)))
    with use_registry(Registry([a, b])):
        assert get_model("y") is b.specs[0]
        assert "acme-a and acme-b" in words_of(PluginError, "x")
        config = parse_config("model_config { y { } }", partial=True)
    assert config.model_config.HasField("y")


def test_what_the_core_has_built_in_cannot_be_taken(use_plugins):
    spec = LossSpec(name="l2_loss", target="a:B", config="tzrec_core.protos.module_pb2:MLP", summary="s")
    taker = plugin("acme-losses", spec)
    with use_registry(Registry([taker])) as current:
        assert current.get(LossSpec, "l2_loss").plugin is current.core
        assert current.get(LossSpec, "acme-losses:l2_loss").spec is spec
    assert taker.state is State.CONFLICT
    assert taker.reason == "loss 'l2_loss' is also offered by tzrec-core"


def test_one_name_for_things_of_two_kinds_is_no_clash():
    feature = FeatureSpec(name="same", target="a:B", summary="s")
    owner, other = plugin("acme-a", model("same")), plugin("acme-b", feature)
    with use_registry(Registry([owner, other])) as current:
        assert get_model("same").name == "same"
        assert current.get(FeatureSpec, "same").spec is feature
    assert {owner.state, other.state} == {State.OK}


def test_a_clash_is_over_when_one_of_the_two_turns_out_broken():
    a = plugin("acme-a", model("x"))
    b = plugin("acme-b", model("x", config="nowhere:X"))
    with use_registry(Registry([a, b])):
        assert a.state is State.CONFLICT
        config = parse_config("model_config { x { } }", partial=True)
    assert config.model_config.HasField("x")
    assert (a.state, b.state) == (State.OK, State.BROKEN)


# Targets


def test_a_target_that_does_not_import_carries_its_cause(use_plugins):
    use_plugins("tzrec-broken-model")
    assert get_model("broken_model").name == "broken_model"  # asking about it costs no import
    with pytest.raises(PluginError) as caught:
        load_class("broken_model")
    assert isinstance(caught.value.__cause__, OSError)
    assert str(caught.value) == (
        "model 'broken_model' of tzrec-broken-model: cannot import tzrec_broken_model.model:BrokenModel: "
        "OSError: libbroken.so: cannot open shared object file"
    )


def test_a_target_that_is_not_in_its_module_says_so():
    current = Registry([plugin("acme-a", model("x", target="json:absent"))])
    with use_registry(current), pytest.raises(PluginError, match="cannot import json:absent: AttributeError"):
        load_class("x")


def test_a_target_may_be_an_attribute_of_a_class():
    with use_registry(Registry([plugin("acme-a", model("x", target="json:JSONDecoder.decode"))])):
        assert load_class("x").__name__ == "decode"


def test_any_spec_can_be_loaded_registered_or_not():
    spec = model("x", target="json:dumps")
    with use_registry(Registry([])):
        assert load_class(spec).__name__ == "dumps"
        with pytest.raises(PluginError, match="an unregistered spec"):
            load_class(model("x", target="json:absent"))


def test_the_class_of_a_third_partys_spec_loads(use_plugins):
    current = use_plugins("acme-ranking")
    for offer in [o for kind in (LossSpec, FeatureSpec) for o in current.offers(kind)]:
        if offer.plugin is not current.core:
            assert load_class(offer.spec).__module__.startswith("acme_ranking.")


# The registry itself


@pytest.mark.parametrize(
    ("distribution", "field"),
    [
        ("tzrec-deepfm", "tzrec_deepfm__deepfm"),
        ("./my plugin.py", "___my_plugin_py__deepfm"),
        ("3d-models", "_3d_models__deepfm"),
    ],
)
def test_the_name_for_configs_is_an_identifier_whatever_the_distribution_is_called(distribution, field):
    offer = Offer(model("deepfm"), plugin(distribution))
    assert offer.field == field
    assert offer.field.isidentifier()


def test_use_registry_gives_back_what_was_there_even_after_an_error():
    before = registry()
    with pytest.raises(ZeroDivisionError), use_registry(Registry([])):
        raise ZeroDivisionError
    assert registry() is before


def test_the_official_plugins_are_found_installed():
    assert {"deepfm", "wide_and_deep"} <= set(list_models())
    assert get_model("deepfm").task is Task.RANK
