"""Turn columns of rows into Arrow arrays and back, turns included, without a dictionary per row.

Arrow's own `from_pylist` and `to_pylist` look at every field of every row; here each column is
converted whole, and a list of structs as the columns of its elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

# Short enough that the texts of a part stay below the two gigabytes of a string array.
_PART_ROWS = 1 << 15


def table_of(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Make a table of equally long columns; elements of a list column are mappings."""
    import pyarrow as pa

    rows = len(columns[schema.names[0]])
    parts = [
        pa.Table.from_arrays(
            [_array(columns[field.name][at : at + _PART_ROWS], field.type) for field in schema],
            schema=schema,
        )
        for at in range(0, max(rows, 1), _PART_ROWS)
    ]
    return pa.concat_tables(parts)


def columns_of(table: pa.Table) -> dict[str, list[Any]]:
    """Return the columns of a table as lists of Python values."""
    return {
        name: list(chain.from_iterable(map(_values, table[name].chunks)))
        for name in table.column_names
    }


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind)) and bool(pa.types.is_struct(kind.value_type))


def _array(values: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    if not _is_nested(kind):
        return pa.array(values, kind)
    fields = list(kind.value_type)
    elements = list(chain.from_iterable(values))
    children = [pa.array(list(map(itemgetter(f.name), elements)), f.type) for f in fields]
    offsets = pa.array([0, *accumulate(map(len, values))], pa.int32())
    structs = pa.StructArray.from_arrays(children, fields=fields)
    return pa.ListArray.from_arrays(offsets, structs, type=kind)


def _values(array: Any) -> list[Any]:
    if not _is_nested(array.type) or array.null_count or array.values.null_count:
        return list(array.to_pylist())
    structs = array.values
    names = [field.name for field in structs.type]
    children = [structs.field(index).to_pylist() for index in range(len(names))]
    elements = [dict(zip(names, values, strict=True)) for values in zip(*children, strict=True)]
    return [elements[start:end] for start, end in pairwise(array.offsets.to_pylist())]
