"""Reads strict YAML into typed structs, and says all that is wrong at once, each with line, column, path and cure.

A form is made from a type: it reads a YAML node into a value of that type, writes a value as it would be read, and
writes the JSON Schema of what it reads, so that the three cannot differ. PyYAML's node tree is used instead of loaded
objects because only nodes know where they stand in the file, and because loading would already have lost duplicate keys
and turned ``on`` into True.

What YAML allows beyond plain data is refused by name: anchors and aliases (a "billion laughs" file of one kilobyte
unfolds to gigabytes), tags, merge keys, several documents.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import yaml
from msgspec.structs import FieldInfo

from sim.distributions import Constant, Empirical, Exponential, Gamma, Lognormal, Weibull
from sim.quantities import BOUND_SCHEMA, Bound, Comparison, Quantity, Spread, Whole, comparison, spelt

BYTES_MAX = 256_000
DEPTH_MAX = 16
NODES_MAX = 20_000
ITEMS_MAX = 200
TEXT_CHARS_MAX = 2_000
PROBLEMS_MAX = 20

Json = dict[str, Any]


class Problem(NamedTuple):
    """One thing wrong with a file: where (from 1), at which path, and what to do."""

    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class Unreadable(Exception):
    """The file says something that cannot be followed.

    Attributes
    ----------
    problems : tuple of Problem
        In the file's order, at most `PROBLEMS_MAX`.
    """

    def __init__(self, problems: list[Problem], source: str) -> None:
        found = sorted(problems)
        self.problems = tuple(found[:PROBLEMS_MAX])
        self.source = source
        lines = [f"{source}: {problem}" for problem in self.problems]
        if len(found) > PROBLEMS_MAX:
            lines.append(f"{source}: and {len(found) - PROBLEMS_MAX} more")
        super().__init__("\n".join(lines))


class OneOf(NamedTuple):
    """Marks a field as a mapping with one key, the tag of one of these structs. A union of structs needs no mark."""

    structs: tuple[type[msgspec.Struct], ...]


class OneOrMany(NamedTuple):
    """Marks a field as a mapping with one key, the tag of one of these structs, or as a list of `many`."""

    one: tuple[type[msgspec.Struct], ...]
    many: type[msgspec.Struct]


Plain = str | int | float | bool


class Table(NamedTuple):
    """Marks a mapping of free keys to plain values, lists of words and tables of the same kind.

    It is read as one flat mapping by path, ``{"guards.unified.retry.attempts_max": 2}``, and a list as one text with
    commas. Somebody else checks it, as (path below, message), and knows its JSON Schema.
    """

    problems: Callable[[dict[str, Plain]], Iterator[tuple[str, str]]]
    schema: Callable[[], Json]


class _Missing:
    pass


MISSING = _Missing()
_NUMBERLIKE = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"


def nearest(word: str, known: list[str]) -> str:
    """Return what to say about an unknown `word`: the nearest known one, or all of them where few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}" if len(known) <= 12 else "see `orchestra sim schema`"


class Reading:
    """One reading of one file: collects problems and remembers where each path stands."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._marks: dict[str, yaml.Mark] = {}

    def at(self, path: str, node: yaml.Node) -> None:
        """Remember that `path` stands at `node`."""
        self._marks[path] = node.start_mark

    def report(self, path: str, message: str, node: yaml.Node | None = None) -> _Missing:
        """Note a problem at `node`, or where `path` (or the nearest part above it) stands."""
        if node is not None:
            mark = node.start_mark
        else:
            above = path
            while above not in self._marks and above:
                above = re.sub(r"(\.[^.\[\]]+|\[[0-9]+\]|^[^.\[\]]+)$", "", above)
            mark = self._marks[above]
        self.problems.append(Problem(mark.line + 1, mark.column + 1, path, message))
        return MISSING


class Form:
    """How a value of one type is written in a file."""

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        """Return the value of `node`, or `MISSING` after reporting why there is none."""
        raise NotImplementedError

    def write(self, value: Any) -> Any:
        """Return plain data that `read` makes `value` of, once it is YAML; `ValueError` if there is none."""
        raise NotImplementedError

    def schema(self, definitions: Json) -> Json:
        """Return the JSON Schema of what `read` takes; structs go to `definitions`."""
        raise NotImplementedError


class ScalarForm(Form):
    """A single value, read from its text by a function that raises ValueError with the cure."""

    def __init__(
        self,
        read: Callable[[str, yaml.ScalarNode], Any],
        schema: Json,
        write: Callable[[Any], Plain] = lambda value: value,
    ) -> None:
        self._read = read
        self._schema = schema
        self._write = write

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return reading.report(path, "write a single value here, not a list or a mapping", node)
        if node.tag == _NULL and node.style is None:
            return reading.report(path, "has no value: write one, or leave the key out", node)
        try:
            return self._read(node.value, node)
        except ValueError as wrong:
            return reading.report(path, str(wrong), node)

    def write(self, value: Any) -> Any:
        return self._write(value)

    def schema(self, definitions: Json) -> Json:
        return dict(self._schema)


def _quantity_form(quantity: Quantity) -> ScalarForm:
    schema = {**quantity.schema, "examples": [quantity.example]}
    return ScalarForm(lambda text, _: quantity.read(text), schema, lambda value: _plainly(spelt(value, quantity)))


def _plainly(text: str) -> Plain:
    """Return a number where the text is one, which YAML would otherwise have to quote."""
    return int(text) if text.isdigit() and len(text) < 16 else text


def _bound_form(bound: Bound) -> ScalarForm:
    schema = {**BOUND_SCHEMA, "examples": [f"<= {bound.of.example}"]}

    def write(bounded: Comparison) -> str:
        return f"{bounded.operator} {spelt(bounded.limit, bound.of)}"

    return ScalarForm(lambda text, _: comparison(text, bound.of.read), schema, write)


def _whole_form(whole: Whole) -> ScalarForm:
    def read(text: str, node: yaml.ScalarNode) -> int:
        if node.style is not None or re.fullmatch(r"[0-9]{1,12}", text) is None:
            raise ValueError(f"{text!r} is no whole number: write one from {whole.low} to {whole.high}, such as 10")
        value = int(text)
        if not whole.low <= value <= whole.high:
            raise ValueError(f"{value} is out of bounds: write {whole.low} to {whole.high}")
        return value

    return ScalarForm(read, {"type": "integer", "minimum": whole.low, "maximum": whole.high})


def _text_form() -> ScalarForm:
    def read(text: str, node: yaml.ScalarNode) -> str:
        if not text.strip():
            raise ValueError("is empty: write some text")
        if len(text) > TEXT_CHARS_MAX:
            raise ValueError(f"is {len(text)} characters long: at most {TEXT_CHARS_MAX}")
        return text.strip()

    return ScalarForm(read, {"type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX})


def _flag_form() -> ScalarForm:
    def read(text: str, node: yaml.ScalarNode) -> bool:
        if node.style is not None or text not in ("true", "false"):
            raise ValueError(f"{text!r} is neither: write true or false")
        return text == "true"

    return ScalarForm(read, {"type": "boolean"})


def _choice_form(choices: tuple[str, ...]) -> ScalarForm:
    def read(text: str, node: yaml.ScalarNode) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is unknown: {nearest(text, list(choices))}")
        return text

    return ScalarForm(read, {"enum": list(choices)})


def _plain(text: str, node: yaml.ScalarNode) -> Plain:
    """Read a scalar as YAML types it, for values whose type somebody else knows."""
    if node.style is not None:
        return text
    if node.tag == _BOOL:
        return text.lower() in ("true", "yes", "on")
    if node.tag in _NUMBERLIKE:
        if re.fullmatch(r"[-+]?[0-9]{1,18}", text):
            return int(text)
        if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,3})?", text):
            return float(text)
        raise ValueError(f"{text} is not a finite decimal number: write one, or quote it where text is meant")
    return text


def _pairs(reading: Reading, node: yaml.MappingNode, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield (key, key node, value node), reporting keys that are no text or come twice."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            reading.report(path, "a key must be a plain word", key_node)
            continue
        key = key_node.value
        if key in seen:
            reading.report(_join(path, key), f"comes twice, first on line {seen[key]}: keep one", key_node)
            continue
        seen[key] = key_node.start_mark.line + 1
        yield key, key_node, value_node


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


class StructForm(Form):
    """A mapping with known keys. A struct's `problems()` may add checks across its fields as (path, message).

    `plain`, where given, is the form of every number that no mark says otherwise of: for a struct whose numbers have
    their unit from where it is used.
    """

    def __init__(self, struct: type[msgspec.Struct], plain: Form | None = None) -> None:
        self.struct = struct
        self.plain = plain
        self.fields = {
            field.encode_name: (field, form_of(field.type, plain)) for field in msgspec.structs.fields(struct)
        }

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            example = ", ".join(list(self.fields)[:3])
            return reading.report(path, f"write a mapping here, with keys such as {example}", node)
        values: dict[str, Any] = {}
        known = list(self.fields)
        whole = True
        for key, key_node, value_node in _pairs(reading, node, path):
            here = _join(path, key)
            if key not in self.fields:
                reading.report(here, f"unknown key: {nearest(key, known)}", key_node)
                whole = False
                continue
            reading.at(here, value_node)
            field, form = self.fields[key]
            value = form.read(reading, value_node, here)
            whole = whole and value is not MISSING
            values[field.name] = value
        for name, (field, _) in self.fields.items():
            if field.required and field.name not in values:
                meaning = _meaning(field.type)
                reading.report(path, f"{name} is missing: add it" + (f" ({meaning})" if meaning else ""), node)
                whole = False
        return self._made(reading, values, path) if whole else MISSING

    def write(self, value: Any) -> Any:
        values = ((key, field, form, getattr(value, field.name)) for key, (field, form) in self.fields.items())
        return {key: form.write(each) for key, field, form, each in values if field.required or each != _default(field)}

    def _made(self, reading: Reading, values: dict[str, Any], path: str) -> Any:
        made = self.struct(**values)
        before = len(reading.problems)
        for below, message in getattr(made, "problems", tuple)():
            reading.report(_join(path, below) if below else path, message)
        return made if len(reading.problems) == before else MISSING

    def schema(self, definitions: Json) -> Json:
        if self.plain is not None:
            return self._schema(definitions)
        name = self.struct.__name__
        if name not in definitions:
            definitions[name] = {}  # stands in while its fields are written, should one refer back
            definitions[name] = self._schema(definitions)
        return {"$ref": f"#/$defs/{name}"}

    def _schema(self, definitions: Json) -> Json:
        properties: Json = {}
        for key, (field, form) in self.fields.items():
            meaning = _meaning(field.type)
            properties[key] = form.schema(definitions) | ({"description": meaning} if meaning else {})
        return {
            "type": "object",
            "description": (self.struct.__doc__ or "").partition("\n")[0],
            "properties": properties,
            "required": [key for key, (field, _) in self.fields.items() if field.required],
            "additionalProperties": False,
        }


class OneOfForm(Form):
    """A mapping with a single key that says which of several forms its value has."""

    def __init__(self, choices: Mapping[str, Form], short: Form | None = None) -> None:
        self.choices = choices
        self.short = short

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        if self.short is not None and isinstance(node, yaml.ScalarNode):
            return self.short.read(reading, node, path)
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            return reading.report(
                path, f"write a mapping with exactly one of these keys: {', '.join(self.choices)}", node
            )
        for key, key_node, value_node in _pairs(reading, node, path):
            here = _join(path, key)
            if key not in self.choices:
                return reading.report(here, f"unknown: {nearest(key, list(self.choices))}", key_node)
            reading.at(here, value_node)
            return self.choices[key].read(reading, value_node, here)
        return MISSING

    def write(self, value: Any) -> Any:
        tag = str(value.__struct_config__.tag)
        if tag not in self.choices:
            raise ValueError(f"a {tag} cannot be written here")
        written = self.choices[tag].write(value)
        return written if self.choices[tag] is self.short else {tag: written}

    def schema(self, definitions: Json) -> Json:
        forms: list[Json] = [
            {
                "type": "object",
                "properties": {key: form.schema(definitions)},
                "required": [key],
                "additionalProperties": False,
            }
            for key, form in self.choices.items()
        ]
        return {"oneOf": ([self.short.schema(definitions)] if self.short else []) + forms}


class SequenceForm(Form):
    """A list of bounded length."""

    def __init__(self, item: Form) -> None:
        self.item = item

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return reading.report(path, "write a list here, each item after a dash", node)
        if len(node.value) > ITEMS_MAX:
            return reading.report(path, f"has {len(node.value)} items: at most {ITEMS_MAX}", node)
        values = []
        for index, item_node in enumerate(node.value):
            here = f"{path}[{index}]"
            reading.at(here, item_node)
            values.append(self.item.read(reading, item_node, here))
        return MISSING if any(value is MISSING for value in values) else tuple(values)

    def write(self, value: Any) -> Any:
        return [self.item.write(each) for each in value]

    def schema(self, definitions: Json) -> Json:
        return {"type": "array", "items": self.item.schema(definitions), "maxItems": ITEMS_MAX}


class OneOrManyForm(Form):
    """A list, or what a list of one would hold, in a form of its own."""

    def __init__(self, one: Form, many: Form) -> None:
        self.one = one
        self.many = many

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        return (self.many if isinstance(node, yaml.SequenceNode) else self.one).read(reading, node, path)

    def write(self, value: Any) -> Any:
        return (self.many if isinstance(value, tuple) else self.one).write(value)

    def schema(self, definitions: Json) -> Json:
        return {"anyOf": [self.one.schema(definitions), self.many.schema(definitions)]}


class TableForm(Form):
    """A mapping of free keys to plain values and to mappings like itself, whose meaning somebody else checks."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._scalar = ScalarForm(_plain, {})
        self._list = SequenceForm(_text_form())

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        before = len(reading.problems)
        values = dict(self.flat(reading, node, path, ""))
        for below, message in self.table.problems(values):
            reading.report(_join(path, below) if below else path, message)
        return values if len(reading.problems) == before else MISSING

    def flat(self, reading: Reading, node: yaml.Node, path: str, below: str) -> Iterator[tuple[str, Plain]]:
        """Yield what stands at `node` by its path below the table's own."""
        if not isinstance(node, yaml.MappingNode):
            reading.report(path, "write a mapping here", node)
            return
        for key, _, value_node in _pairs(reading, node, path):
            here, inside = _join(path, key), _join(below, key)
            reading.at(here, value_node)
            if "." in key:
                reading.report(here, "a key is one word: write what follows the dot as a mapping below it", value_node)
            elif isinstance(value_node, yaml.MappingNode):
                yield from self.flat(reading, value_node, here, inside)
            elif isinstance(value_node, yaml.SequenceNode):
                if (words := self._list.read(reading, value_node, here)) is not MISSING:
                    yield inside, ",".join(words)
            elif (value := self._scalar.read(reading, value_node, here)) is not MISSING:
                yield inside, value

    def write(self, value: Any) -> Any:
        tables: dict[str, Any] = {}
        for path, each in value.items():
            *above, key = path.split(".")
            table = tables
            for name in above:
                table = table.setdefault(name, {})
            table[key] = each
        return tables

    def schema(self, definitions: Json) -> Json:
        schema = self.table.schema()
        definitions |= schema.pop("$defs", {})
        return schema


def _meaning(kind: Any) -> str:
    """Return the plain text that a field's annotation carries."""
    return next((extra for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, str)), "")


def _default(field: FieldInfo) -> Any:
    """Return what a field is where the file does not say."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _positive(quantity: Quantity) -> Quantity:
    """Return `quantity` without zero, which a lognormal or an exponential cannot have."""

    def read(text: str) -> float:
        value = quantity.read(text)
        if value == 0:
            raise ValueError("0 is out of bounds here: write more than 0, or {constant: 0}")
        return value

    return quantity._replace(read=read)


class _MappedForm(Form):
    """Reads with another form and makes something of the value, which has it as its attribute `part`."""

    def __init__(self, form: Form, make: Callable[[Any], Any], part: str) -> None:
        self._form = form
        self._make = make
        self._part = part

    def read(self, reading: Reading, node: yaml.Node, path: str) -> Any:
        value = self._form.read(reading, node, path)
        return value if value is MISSING else self._make(value)

    def write(self, value: Any) -> Any:
        return self._form.write(getattr(value, self._part))

    def schema(self, definitions: Json) -> Json:
        return self._form.schema(definitions)


_SKEWED = (Exponential, Lognormal, Gamma, Weibull, Empirical)


def _spread_form(spread: Spread) -> Form:
    constant = _MappedForm(_quantity_form(spread.of), Constant, "value")
    positive = _quantity_form(_positive(spread.of))
    skewed: dict[str, Form] = {str(each.__struct_config__.tag): StructForm(each, positive) for each in _SKEWED}
    return OneOfForm({"constant": constant, **skewed}, short=constant)


def _tagged_form(structs: Iterable[type[msgspec.Struct]]) -> Form:
    return OneOfForm({str(struct.__struct_config__.tag): StructForm(struct) for struct in structs})


_BY_MARK: dict[type, Callable[[Any], Form]] = {
    Quantity: _quantity_form,
    Spread: _spread_form,
    Bound: _bound_form,
    Whole: _whole_form,
    Table: TableForm,
    OneOf: lambda mark: _tagged_form(mark.structs),
    OneOrMany: lambda mark: OneOrManyForm(_tagged_form(mark.one), SequenceForm(StructForm(mark.many))),
}


def form_of(kind: Any, number: Form | None = None) -> Form:
    """Make the form of a type: what its annotation marks, else a struct, a union of them, a tuple, Literal or str.

    `number` is the form of a bare `float`, where one may stand.
    """
    for extra in getattr(kind, "__metadata__", ()):
        if type(extra) in _BY_MARK:
            return _BY_MARK[type(extra)](extra)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        members = [member for member in arguments if member is not NoneType]
        return form_of(members[0]) if len(members) == 1 else _tagged_form(members)
    if origin in (Annotated, tuple):
        inner = form_of(arguments[0], number)
        return inner if origin is Annotated else SequenceForm(inner)
    if origin is Literal:
        return _choice_form(arguments)
    if kind is float and number is not None:
        return number
    if kind is str:
        return _text_form()
    if kind is bool:
        return _flag_form()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return StructForm(kind)
    raise TypeError(f"no form for {kind}")


@cache
def file_form(kind: type[msgspec.Struct]) -> StructForm:
    """Return the form of a whole file, made once: a scenario's takes longer to make than most files to read."""
    return StructForm(kind)


def _syntax_cure(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if "'\\t'" in problem or "tab" in problem:
        return "a tab cannot indent in YAML: use spaces"
    if "block scalar" in (error.context or ""):
        return 'a value that starts with ">" needs quotes: write it as ">= 99%"'
    if "cannot start any token" in problem or "did not find expected alphabetic" in problem:
        return f"{problem}: put the value in quotes"
    if "expected ',' or" in problem:
        return f"{problem}: a brace or bracket is not closed, or a comma is missing"
    if "mapping values are not allowed" in problem:
        return f"{problem}: check the indentation, and quote a value that contains a colon"
    return problem


def _refuse_beyond_data(text: str, source: str) -> None:
    """Look at the file's events, before anything unfolds, for what is no plain data."""
    depth = nodes = documents = 0
    problems: list[Problem] = []

    def refuse(event: yaml.Event, message: str) -> None:
        assert event.start_mark is not None  # every event of a parsed text has one
        problems.append(Problem(event.start_mark.line + 1, event.start_mark.column + 1, "", message))

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                refuse(event, "a second document starts here: one scenario a file")
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.AliasEvent):
                refuse(event, f"the alias *{event.anchor} is not supported: write the value out")
            elif event.anchor is not None:
                refuse(event, f"the anchor &{event.anchor} is not supported: remove it and write values out")
            if (tag := getattr(event, "tag", None)) is not None:
                refuse(event, f"the tag {tag} is not supported: remove it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX or nodes > NODES_MAX or len(problems) >= PROBLEMS_MAX:
            if depth > DEPTH_MAX or nodes > NODES_MAX:
                refuse(event, f"too much: at most {DEPTH_MAX} levels and {NODES_MAX} values")
            break
    if problems:
        raise Unreadable(problems, source)


def decoded(data: bytes, source: str) -> str:
    """Decode a file's bytes, within bounds, as UTF-8 with or without a byte order mark."""
    if len(data) > BYTES_MAX:
        raise Unreadable([Problem(1, 1, "", f"{len(data):,} bytes are too many: at most {BYTES_MAX:,}")], source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        column = wrong.start - (data.rfind(b"\n", 0, wrong.start) + 1) + 1
        raise Unreadable([Problem(line, column, "", "this is not UTF-8: save the file as UTF-8")], source) from None


Finish = Callable[[Any, Callable[[str, str], object]], Any]
"""Makes something of what was read; it may report a problem, by path and message, instead."""


def read_yaml(text: str, kind: type[msgspec.Struct], source: str, finish: Finish = lambda made, report: made) -> Any:
    """Read `text` as one `kind`.

    Raises
    ------
    Unreadable
        With every problem found.
    """
    try:
        _refuse_beyond_data(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise Unreadable([Problem(line, column, "", _syntax_cure(wrong))], source) from None
    except yaml.reader.ReaderError as wrong:
        line = text.count("\n", 0, wrong.position) + 1
        column = wrong.position - (text.rfind("\n", 0, wrong.position) + 1) + 1
        message = f"the character U+{wrong.character:04X} is not allowed in YAML: remove it"
        raise Unreadable([Problem(line, column, "", message)], source) from None
    if node is None:
        raise Unreadable([Problem(1, 1, "", "the file is empty: see `orchestra sim schema` for what it holds")], source)
    reading = Reading()
    reading.at("", node)
    made = file_form(kind).read(reading, node, "")
    if not reading.problems:
        made = finish(made, reading.report)
    if reading.problems:
        raise Unreadable(reading.problems, source)
    return made


def plain(value: msgspec.Struct) -> Json:
    """Return what stands in a file that `read_yaml` reads `value` from; what is as by default is left out.

    Raises
    ------
    ValueError
        No file says this.
    """
    return dict(file_form(type(value)).write(value))


def write_yaml(value: msgspec.Struct) -> str:
    """Return YAML that `read_yaml` reads `value` from. Raises like `plain`."""
    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def json_schema(kind: type[msgspec.Struct], title: str) -> Json:
    """Return the JSON Schema (draft 2020-12) of the files that `read_yaml` takes for `kind`."""
    definitions: Json = {}
    root = file_form(kind).schema(definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **root, "$defs": definitions}
