"""A plugin for the tests of the engine and of the command line; used with `--plugin`, not installed."""

from tzrec_core.plugins import Group, ModelSpec, Task, hookimpl


@hookimpl
def tzrec_specs():
    return [
        ModelSpec(
            name="tiny",
            target="tiny_model:Tiny",
            config="tiny_config:TinyConfig",
            task=Task.RANK,
            summary="One hidden layer over embeddings.",
            groups=(Group("deep"),),
        )
    ]


@hookimpl
def tzrec_commands(app):
    @app.command()
    def hello(name: str) -> None:
        print(f"hello {name}")

    @app.command()
    def bye() -> None:
        print("bye")
