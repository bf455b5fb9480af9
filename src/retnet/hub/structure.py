"""Frozen dataclasses to plain dictionaries and back, and to TOML: every config file we read."""

import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from retnet.model.config import branch_name

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as TOML and JSON can hold it: None is left out, a branch gains its `name`."""
    values = ((f, getattr(config, f.name)) for f in fields(config))
    return {f.name: _plain(value, f) for f, value in values if value is not None}


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a config from plain values.

    Args:
        cls: a dataclass.
        data: its fields; nested dataclasses are mappings, a branch names its class by `name`.
        where: dotted path of this table, for messages.

    Raises:
        ValueError: a key is unknown (the message names the nearest), missing, or of another type.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(data, list(known), where)
    hints = typing.get_type_hints(cls)
    values = {
        key: _build(hints[key], value, _join(where, key), known[key]) for key, value in data.items()
    }
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{_join(where, name)} is missing; it has no default, so set it")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"[{where}] {error}" if where else str(error)) from None


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error names the file."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        found = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {found}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}; mend that line") from None


def dump_toml(config: Any) -> str:
    """A config as TOML text that `load_toml` and `from_dict` read back to an equal one."""
    return "\n".join(_table(to_dict(config), "")).strip() + "\n"


def _plain(value: Any, field: Field | None = None) -> Any:
    if is_dataclass(value):
        named = field is not None and "registry" in field.metadata
        return ({"name": branch_name(value)} if named else {}) | to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _build(hint: Any, value: Any, where: str, field: Field | None = None) -> Any:
    """`value` as the type that `hint` asks for."""
    if field is not None and "registry" in field.metadata:
        return _branch(field.metadata["registry"], value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return None if value is None else _build(inner[0], value, where)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} ({value!r}) must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            value = [value]  # one entry needs no brackets
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ValueError(f"{where} ({list(value)}) must have {len(args)} entries")
        return tuple(_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} ({value!r}) must be a table")
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} ({value!r}) must be of type {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} ({value}) must be a finite number")
    return value


def _branch(registry: Mapping[str, type], value: Any, where: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping) or "name" not in value:
        raise ValueError(f'{where} must be a table with a "name", one of {", ".join(registry)}')
    name = value["name"]
    if name not in registry:
        raise ValueError(f"{where}.name ({name!r}) must be one of {', '.join(registry)}")
    rest = {key: item for key, item in value.items() if key != "name"}
    return from_dict(registry[name], rest, where)


def _refuse_unknown(data: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"{_join(where, key)} is not a known key; {remedy}")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _table(data: Mapping[str, Any], path: str) -> list[str]:
    """Lines of a table: its values first, then its tables and lists of tables."""
    values, tables = [], []
    for key, value in data.items():
        if isinstance(value, Mapping):
            tables += ["", f"[{_join(path, key)}]", *_table(value, _join(path, key))]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                tables += ["", f"[[{_join(path, key)}]]", *_table(item, _join(path, key))]
        else:
            values.append(f"{key} = {_literal(value)}")
    return values + tables


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escape(c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    return repr(value)


def _escape(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c
