"""Models that read other groups than the tiny one, for the tests of `tzrec init`."""

from tzrec_core.plugins import Group, ModelSpec, Task, hookimpl


def model(name, config, groups, **kwargs):
    return ModelSpec(
        **{
            "name": name,
            "target": "draft_models:AnyGroups",
            "config": f"draft_models:{config}",
            "summary": name,
            "groups": groups,
            **kwargs,
        }
    )


@hookimpl
def tzrec_specs():
    return [
        model("steps", "Plain", (Group("deep"), Group("clicks", types=("SEQUENCE",)))),
        model("jagged", "Plain", (Group("*", types=("JAGGED_SEQUENCE",)),)),
        model("first", "Plain", (Group("*"),)),
        model("towers", "Towers", (Group(from_field="user_tower.input"), Group(from_field="others.input"))),
        model("fussy", "Fussy", (Group("deep"),)),
        model("matcher", "Plain", (Group("deep"),), task=Task.MATCH),
        model("tasks", "Tasks", (Group("*"),), task=Task.MULTITASK, target="draft_models:AnyTasks"),
        model("no_list", "Plain", (Group("deep"),), task=Task.MULTITASK),
    ]
