"""Names and types of columns: what the config declares, what a file has, how they are brought together."""

import re
from collections.abc import Sequence

import pyarrow as pa

from tzrec_core.errors import ConfigError, DataError, did_you_mean
from tzrec_core.features.rows import is_list
from tzrec_core.protos.data_pb2 import DataConfig, FieldType

_SCALARS = {
    "INT32": pa.int32(),
    "INT64": pa.int64(),
    "STRING": pa.string(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
}
_FIELD_TYPES = tuple(FieldType.keys())
_SHOWN = 3


def arrow_type(field_type: str) -> pa.DataType:
    """The Arrow type of a `FieldType` name, such as list<int64> for `ARRAY_INT64`."""
    kind, _, rest = field_type.partition("_")
    if kind == "ARRAY":
        return pa.list_(arrow_type(rest))
    if kind == "MAP":
        key, _, value = rest.partition("_")
        return pa.map_(_SCALARS[key], _SCALARS[value])
    return _SCALARS[field_type]


def declared_types(data_config: DataConfig) -> dict[str, pa.DataType | None]:
    """The columns of `input_fields` or `input_fields_str` in order; None where a field has no `input_type`.

    `input_fields_str` is `"name:TYPE;name:TYPE"`; commas and line breaks separate as well.

    Raises:
        ConfigError: both are set, a name stands twice, or a type does not exist.
    """
    if data_config.input_fields and data_config.input_fields_str:
        raise ConfigError("data_config has both input_fields and input_fields_str: keep one of them")
    pairs: list[tuple[str, pa.DataType | None]] = []
    for field in data_config.input_fields:
        has_type = field.HasField("input_type")
        pairs.append((field.input_name, arrow_type(FieldType.Name(field.input_type)) if has_type else None))
    for part in re.split(r"[;,\n]", data_config.input_fields_str):
        if part.strip():
            pairs.append(_parse_field(part.strip()))
    declared = dict(pairs)
    if len(declared) < len(pairs):
        twice = next(name for name in declared if [other for other, _ in pairs].count(name) > 1)
        raise ConfigError(f"data_config.input_fields: {twice!r} stands there twice")
    return declared


def _parse_field(part: str) -> tuple[str, pa.DataType]:
    name, _, type_name = (piece.strip() for piece in part.rpartition(":"))
    if not name:
        raise ConfigError(f"data_config.input_fields_str: {part!r} is not of the form name:TYPE, such as user_id:INT64")
    if type_name.upper() not in _FIELD_TYPES:
        raise ConfigError(
            f"data_config.input_fields_str: {type_name!r} of column {name!r} is not a type."
            f"{did_you_mean(type_name.upper(), _FIELD_TYPES)} Types are: {', '.join(_FIELD_TYPES)}"
        )
    return name, arrow_type(type_name.upper())


def plain_type(given: pa.DataType) -> pa.DataType:
    """The type without its storage: large, view, fixed-size and dictionary variants become the plain type."""
    if pa.types.is_dictionary(given) or pa.types.is_run_end_encoded(given):
        return plain_type(given.value_type)
    if pa.types.is_large_string(given) or pa.types.is_string_view(given):
        return pa.string()
    if pa.types.is_large_binary(given) or pa.types.is_binary_view(given):
        return pa.binary()
    if pa.types.is_map(given):
        return pa.map_(plain_type(given.key_type), plain_type(given.item_type))
    if is_list(given) or pa.types.is_list_view(given) or pa.types.is_large_list_view(given):
        return pa.list_(plain_type(given.value_type))
    return given


class MissingColumnError(DataError):
    """A file lacks a column.

    Args:
        source: the file.
        column: the column.
        names: the columns that the file has.
        read_by: who reads the column, such as `feature 'age'`; empty = unknown.

    Attributes:
        column: as given.
    """

    def __init__(self, source: str, column: str, names: Sequence[str], read_by: Sequence[str] = ()) -> None:
        more = f" and {len(read_by) - _SHOWN} more" if len(read_by) > _SHOWN else ""
        reader = f", read by {', '.join(read_by[:_SHOWN])}{more}" if read_by else ""
        super().__init__(
            f"{source}: there is no column {column!r}{reader}.{did_you_mean(column, names)} "
            f"Columns are: {', '.join(names) or 'none'}"
        )
        self._source, self._names = source, names
        self.column = column

    def read_by(self, readers: Sequence[str]) -> "MissingColumnError":
        """The same error, which also says who reads the column."""
        return MissingColumnError(self._source, self.column, self._names, readers)


def check_columns(source: str, names: Sequence[str], asked: Sequence[str]) -> None:
    """Make sure that file `source` with columns `names` has each of the `asked` columns, once.

    Raises:
        DataError: it has not; names the file, the column, the nearest name and the columns.
    """
    for column in asked:
        if column not in names:
            raise MissingColumnError(source, column, names)
        if list(names).count(column) > 1:
            raise DataError(f"{source}: column {column!r} stands there {list(names).count(column)} times")


def conform(table: pa.RecordBatch, schema: pa.Schema, source: str, first_row: int) -> pa.RecordBatch:
    """The columns of `schema` out of `table`, cast to its types without losing information.

    Raises:
        DataError: a value does not fit the type; names the file, the row and the column.
    """
    columns = []
    for field in schema:
        column = table.column(field.name)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                row, text = _first_misfit(column, field.type, str(error))
                raise DataError(
                    f"{source}, row {first_row + row}: column {field.name!r} of type {column.type} "
                    f"cannot be read as {field.type}: {text}"
                ) from error
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _first_misfit(column: pa.Array, wanted: pa.DataType, text: str) -> tuple[int, str]:
    for row in range(len(column)):
        try:
            column.slice(row, 1).cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            return row, str(error)
    return 0, text
