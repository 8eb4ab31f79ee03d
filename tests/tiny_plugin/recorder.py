"""The manifest of a callback that writes down the rows of each step; its model is the tiny one's neighbour."""

from tzrec_core.plugins import CallbackSpec, hookimpl


@hookimpl
def tzrec_specs():
    return [
        CallbackSpec(
            name="recorder",
            target="recorder_callback:Recorder",
            config="google.protobuf.wrappers_pb2:StringValue",
            summary="Writes the rows of each step to a file per process, and can end the process.",
        )
    ]
