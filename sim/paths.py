"""Changes a scenario at a path, as in its file: ``world.provider.capacity``, ``faults[0].factor``, ``guards...``.

A value is written as in the file, with its unit, and read by the same forms, so that it is refused in the same words.
Where a file names which of several things is meant (``workload.open_loop``, ``faults[0].provider_slow``), the path may
leave that out, since the scenario says it. What starts with no field of a scenario is a setting of the orchestra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from msgspec import Struct, structs

from orchestra.config import FIELDS
from sim.distributions import Constant
from sim.forms import (
    Form,
    OneOfForm,
    OneOrManyForm,
    Plain,
    Reading,
    SequenceForm,
    StructForm,
    TableForm,
    file_form,
    nearest,
)
from sim.scenario import Scenario

SETTINGS = "settings"
MAPPING = "tag:yaml.org,2002:map"
TEXT = "tag:yaml.org,2002:str"
_FORM = file_form(Scenario)
_KEY = r"[^.\[\]\s]+"
_STEP = re.compile(rf"{_KEY}|\[[0-9]+\]")
_PATH = re.compile(rf"{_KEY}(\[[0-9]+\])*(\.{_KEY}(\[[0-9]+\])*)*")


class PathRefused(Exception):
    """A path leads nowhere, or what is written there cannot stand; the message names the path and the cure."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


def changed(scenario: Scenario, values: Mapping[str, str]) -> Scenario:
    """Return `scenario` with other values at some paths.

    Parameters
    ----------
    scenario : Scenario
    values : mapping of str to str
        By path, each written as in a scenario's file: ``{"workload.open_loop.rate": "5/s", "faults[0].for": "90s"}``.

    Raises
    ------
    PathRefused
        For the first path that leads nowhere or whose value cannot be read, or for what does not fit together when all
        are set.
    """
    for path, text in values.items():
        scenario, _ = _put(_FORM, scenario, steps(path), text, path)
    for path, message in _problems(_FORM, scenario, ""):
        raise PathRefused(path or ", ".join(values), message)
    return scenario


def plain(scenario: Scenario, path: str, text: str) -> Plain:
    """Return the number that `text` means at `path`, in seconds, per second or as a share of one; else `text` itself.

    Raises
    ------
    PathRefused
        As `changed` does.
    """
    _, value = _put(_FORM, scenario, steps(path), text, path)
    if isinstance(value, Constant):
        value = value.value
    return value if isinstance(value, str | int | float | bool) else text


def steps(path: str) -> list[str]:
    """Return a path's keys and indices, from the scenario down; settings may leave out that they are settings.

    Raises
    ------
    PathRefused
        It is not a path at all.
    """
    if _PATH.fullmatch(path) is None:
        raise PathRefused(path, "is no path: write keys with dots, such as world.provider.capacity or faults[0].factor")
    found = _STEP.findall(path)
    if found[0] in _FORM.fields:
        return found
    tables = dict.fromkeys(each.split(".")[0] for each in FIELDS)
    if found[0] not in tables:
        known = [*_FORM.fields, *tables]
        raise PathRefused(path, f"neither a scenario nor the settings have {found[0]}: {nearest(found[0], known)}")
    return [SETTINGS, *found]


def _put(form: Form, value: Any, way: list[str], text: str, path: str) -> tuple[Any, Any]:
    """Return `value` with what `text` means at the end of the `way`, and that meaning."""
    if isinstance(form, TableForm):
        return _put_in_table(form, value, way, text, path)
    if not way:
        meant = _read(form, text, path)
        return meant, meant
    if isinstance(form, OneOrManyForm):
        return _put(_chosen(form, value), value, way, text, path)
    step, rest = way[0], way[1:]
    if isinstance(form, OneOfForm):
        return _put_one(form, value, way, text, path)
    if value is None:
        raise PathRefused(path, f"{step} stands in what this scenario leaves out: add that to its file first")
    if isinstance(form, SequenceForm):
        index = int(step[1:-1]) if step.startswith("[") else -1
        if not 0 <= index < len(value):
            known = f"write [0] to [{len(value) - 1}]" if len(value) > 1 else "write [0]" if value else "there are none"
            raise PathRefused(path, f"{step} is not in this scenario: {known}")
        item, meant = _put(form.item, value[index], rest, text, path)
        return (*value[:index], item, *value[index + 1 :]), meant
    if not isinstance(form, StructForm):
        raise PathRefused(path, f"is a single value, which has no {step}: leave that out")
    if step not in form.fields:
        raise PathRefused(path, f"unknown key {step}: {nearest(step, list(form.fields))}")
    field, inner = form.fields[step]
    made, meant = _put(inner, getattr(value, field.name), rest, text, path)
    return structs.replace(value, **{field.name: made}), meant


def _put_one(form: OneOfForm, value: Any, way: list[str], text: str, path: str) -> tuple[Any, Any]:
    """Do as `_put` where a mapping has one of several keys; the way may leave out which."""
    tag = str(value.__struct_config__.tag) if isinstance(value, Struct) else ""
    if way[0] not in form.choices:
        if tag not in form.choices:
            raise PathRefused(path, f"unknown key {way[0]}: {nearest(way[0], list(form.choices))}")
        return _put(form.choices[tag], value, way, text, path)
    if way[0] != tag and way[1:]:
        raise PathRefused(path, f"this scenario has {tag} there, not {way[0]}: write {tag}, or change the file")
    return _put(form.choices[way[0]], value, way[1:], text, path)


def _chosen(form: OneOrManyForm, value: Any) -> Form:
    return form.many if isinstance(value, tuple) else form.one


def _put_in_table(form: TableForm, value: dict[str, Plain], way: list[str], text: str, path: str) -> tuple[Any, Any]:
    node = _node(text, path)
    if not way or isinstance(node, yaml.MappingNode):
        raise PathRefused(path, "is a table: name one key of it, and its value")
    for key in reversed(way):
        node = yaml.MappingNode(
            MAPPING, [(yaml.ScalarNode(TEXT, key, node.start_mark), node)], node.start_mark, node.end_mark
        )
    reading = Reading()
    reading.at("", node)
    found = dict(form.flat(reading, node, "", ""))
    _refuse(reading, path)
    return {**value, **found}, found[".".join(way)]


def _node(text: str, path: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if node is None:
        raise PathRefused(path, f"{text!r} is no value: write it as in a scenario's file")
    return node


def _read(form: Form, text: str, path: str) -> Any:
    reading = Reading()
    node = _node(text, path)
    reading.at(path, node)
    value = form.read(reading, node, path)
    _refuse(reading, path)
    return value


def _refuse(reading: Reading, path: str) -> None:
    if reading.problems:
        raise PathRefused(path, min(reading.problems).message)


def _problems(form: Form, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, message) of what no single field shows, from the leaves up, as when a file is read."""
    if value is None:
        return
    if isinstance(form, TableForm):
        for below, message in form.table.problems(value):
            yield f"{path}.{below}" if below else path, message
    elif isinstance(form, OneOfForm):
        tag = str(value.__struct_config__.tag)
        if tag in form.choices:
            yield from _problems(form.choices[tag], value, f"{path}.{tag}")
    elif isinstance(form, OneOrManyForm):
        yield from _problems(_chosen(form, value), value, path)
    elif isinstance(form, SequenceForm):
        for index, item in enumerate(value):
            yield from _problems(form.item, item, f"{path}[{index}]")
    elif isinstance(form, StructForm):
        for key, (field, inner) in form.fields.items():
            yield from _problems(inner, getattr(value, field.name), f"{path}.{key}" if path else key)
        for below, message in getattr(value, "problems", tuple)():
            yield f"{path}.{below}" if path and below else path or below, message
