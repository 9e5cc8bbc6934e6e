"""Describes every setting as an environment variable, from the parameters' dataclasses, and words the faults."""

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from edge_agent.core.protocol.topics import ID, RESERVED_CAMERAS

PREFIX = "EDGE_AGENT_"
ANY_KEY = "*"

_USER_INFO = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY_SECRET = re.compile(r"([?&;][^=&;]*(?:pass|pwd|token|key|auth|secret|sig|user)[^=&;]*=)[^&;#]*", re.IGNORECASE)
_LONGEST_SHOWN = 60

Keys = Tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """One setting.

    Attributes:
        path: From the root; `*` stands for a key that the user chooses (camera id, zone name).
        annotation: The declared type.
        default: The default; `dataclasses.MISSING` for a required setting.
        description: One sentence.
        bounds: `gt`, `ge`, `lt`, `le`, `min_length`, `max_length`, `pattern`.
        reload: "live" or "restart".
        secret: True when the value must never be shown.
        member: True for one entry of a mapping that may also be given whole.
    """

    path: Keys
    annotation: Any
    default: Any
    description: str
    bounds: Mapping[str, Any]
    reload: str
    secret: bool
    member: bool = False

    @property
    def type(self) -> Any:
        """The type without `Optional`."""
        return _without_optional(self.annotation)

    @property
    def optional(self) -> bool:
        """True when an empty value means unset."""
        return self.type is not self.annotation

    @property
    def required(self) -> bool:
        """True when it has no default."""
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> Tuple[Any, ...]:
        """The allowed values; empty when they are not a choice."""
        if get_origin(self.type) is Literal:
            return get_args(self.type)
        if isinstance(self.type, type) and issubclass(self.type, Enum):
            return tuple(choice.value for choice in self.type)
        return ()

    @property
    def is_json(self) -> bool:
        """True for lists and mappings, which are written as JSON."""
        return get_origin(self.type) in (dict, list, tuple)

    @property
    def expected(self) -> str:
        """Type, choices and bounds as text."""
        parts = [self.type_name]
        if self.choices:
            parts = ["one of " + ", ".join(str(choice) for choice in self.choices)]
        if self.bounds_text:
            parts.append(self.bounds_text)
        return ", ".join(parts) + (", or empty for unset" if self.optional else "")

    @property
    def type_name(self) -> str:
        """The type as text."""
        if self.choices:
            return "choice"
        if self.is_json:
            return f"JSON {_shape(self.type)}"
        return {bool: "true or false", int: "an integer", float: "a number"}.get(self.type, "text")

    @property
    def bounds_text(self) -> str:
        """The bounds as text; empty when there are none."""
        bounds = self.bounds
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}
        parts = [f"{word} {bounds[key]}" for key, word in words.items() if key in bounds]
        if "ge" in bounds and "le" in bounds:
            parts[:2] = [f"{bounds['ge']} to {bounds['le']}"]
        if "min_length" in bounds:
            parts.append("not empty" if bounds["min_length"] == 1 else f"at least {bounds['min_length']} characters")
        if "max_length" in bounds:
            parts.append(f"at most {bounds['max_length']} characters")
        if "pattern" in bounds:
            parts.append(f"matching {bounds['pattern']}")
        return " and ".join(parts)

    def decode(self, text: str) -> Any:
        """The value to validate for an environment variable's `text`; scalars stay text.

        Raises:
            ValueError: The defect, without the value.
        """
        if not _is_utf8(text):
            raise ValueError("is not UTF-8 text")
        if self.optional and not text.strip():
            return None
        if self.is_json:
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
            except (ValueError, RecursionError):
                raise ValueError("is not JSON within the limits") from None
        if self.choices:
            wanted = text.strip().lower()
            return next((choice for choice in self.choices if str(choice).lower() == wanted), text)
        return text if self.type is str else text.strip()


def variables(owner: Any, above: Keys = ()) -> Iterator[Variable]:
    """The settings of a parameters' dataclass and its nested ones, in order of declaration."""
    hints = get_type_hints(owner)
    for declared in dataclasses.fields(owner):
        yield from declared_variables(hints[declared.name], declared, (*above, declared.name))


def declared_variables(annotation: Any, declared: "dataclasses.Field[Any]", path: Keys) -> Iterator[Variable]:
    """The settings of one field: the field itself, or those of its dataclass (or mapping of dataclasses)."""
    inner = _without_optional(annotation)
    is_mapping = get_origin(inner) is dict
    owner = dataclass_of(annotation)
    if owner is not None:
        yield from variables(owner, (*path, ANY_KEY) if is_mapping else path)
        return
    default = declared.default
    if declared.default_factory is not dataclasses.MISSING:
        default = declared.default_factory()
    if default is None and inner is annotation:
        default = dataclasses.MISSING
    metadata = dict(declared.metadata)
    extra = metadata.pop("json_schema_extra", {})
    variable = Variable(
        path,
        annotation,
        default,
        metadata.pop("description", ""),
        metadata,
        extra.get("reload", "live"),
        extra.get("secret", False),
    )
    yield variable
    if is_mapping:
        yield dataclasses.replace(
            variable,
            path=(*path, ANY_KEY),
            annotation=get_args(inner)[1],
            default=dataclasses.MISSING,
            bounds={},
            member=True,
        )


def dataclass_of(annotation: Any) -> Any:
    """The parameters' dataclass of a section (optional, or a mapping to it); None for a plain setting."""
    inner = _without_optional(annotation)
    if get_origin(inner) is dict:
        inner = get_args(inner)[1]
    return inner if dataclasses.is_dataclass(inner) else None


def name_of(path: Sequence[str]) -> str:
    """The full name of the environment variable."""
    return PREFIX + _suffix(path)


def _suffix(path: Sequence[str]) -> str:
    return "__".join(part.upper() for part in path)


class Catalogue:
    """All settings, found by path."""

    def __init__(self, declared: Iterable[Variable]) -> None:
        self.variables: Tuple[Variable, ...] = tuple(declared)

    def find(self, path: Keys) -> Optional[Variable]:
        """The setting at `path` (lower case, keys filled in), or None."""
        return next((variable for variable in self.variables if _matches(variable.path, path)), None)

    def resolve(self, path: Keys, known_keys: Iterable[str] = ()) -> Variable:
        """The setting at `path`.

        Args:
            path: Lower case, from the root.
            known_keys: Ids of the user's cameras, for the suggestion.

        Raises:
            ValueError: The name is unknown; the message suggests the nearest known one.
        """
        variable = self.find(path)
        if variable is None:
            inside = next((v for v in self.variables if _matches(v.path[: len(path)], path)), None)
            if inside is not None:
                example = name_of(inside.path).replace(ANY_KEY, "<CAMERA>")
                raise ValueError(f"is a section, not a setting; expected a name inside it, such as {example}")
            raise ValueError(f"unknown setting{self.suggestion(path, known_keys)}")
        for depth, (pattern, key) in enumerate(zip(variable.path, path)):
            if pattern == ANY_KEY:
                check_key(key, is_camera=path[0] == "cameras" and depth == 1)
        return variable

    def suggestion(self, path: Keys, known_keys: Iterable[str] = ()) -> str:
        """The end of a message about an unknown name, with the nearest known name."""
        keys = sorted({key.upper() for key in (*known_keys, *path[1:2])})
        candidates: List[str] = []
        for variable in self.variables:
            if not variable.member:
                name = _suffix(variable.path)
                candidates += [name.replace(ANY_KEY, key) for key in keys] if ANY_KEY in name else [name]
        nearest = difflib.get_close_matches(_suffix(path), candidates, 1)
        return f"; did you mean {PREFIX}{nearest[0]}?" if nearest else "; `edge-agent config example` lists all names"


def shown(value: Any) -> str:
    """`value` as text without credentials: ***, for a URI's user information and secret-looking query values."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
    return _QUERY_SECRET.sub(r"\1***", _USER_INFO.sub("***@", text))


def quoted(value: Any) -> str:
    """`value` for a one-line message: without credentials, shortened, special characters escaped."""
    text = repr(shown(value)) if isinstance(value, str) else shown(json.dumps(value, default=str))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 2] + "…" + text[-1]


def check_key(key: str, is_camera: bool = False) -> None:
    """Refuse a name (of a camera, zone, control) that cannot be part of an MQTT topic.

    Raises:
        ValueError: The reason.
    """
    if not ID.fullmatch(key):
        raise ValueError(
            f"the name {key!r} cannot be used; expected a to z, 0 to 9, _ and -, beginning with a letter or digit, "
            "at most 63 characters"
        )
    if is_camera and key in RESERVED_CAMERAS:
        raise ValueError(f"the camera id {key!r} is reserved; expected none of {', '.join(sorted(RESERVED_CAMERAS))}")


def _matches(pattern: Keys, path: Keys) -> bool:
    return len(pattern) == len(path) and all(part in (key, ANY_KEY) for part, key in zip(pattern, path))


def _is_utf8(text: str) -> bool:
    """False for text that Python could not decode from the environment."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_optional(annotation: Any) -> Any:
    if get_origin(annotation) is Union:
        inner = [part for part in get_args(annotation) if part is not type(None)]
        if len(inner) == 1 and len(inner) < len(get_args(annotation)):
            return inner[0]
    return annotation


def _shape(annotation: Any) -> str:
    """The form of a JSON value of this type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return f'{{"name": {_shape(parts[1])}}}'
    if origin is list or (origin is tuple and parts[1:] == (...,)):
        return f"[{_shape(parts[0])}, ...]"
    if origin is tuple:
        return f"[{', '.join(_shape(part) for part in parts)}]"
    names: Dict[Any, str] = {bool: "true or false", int: "integer", float: "number"}
    return names.get(annotation, "text")


_PROBLEMS = {
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "dict_type": "is not a JSON object",
    "finite_number": "is not a finite number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "int_from_float": "is not an integer",
    "int_parsing": "is not an integer",
    "int_parsing_size": "is too large",
    "int_type": "is not an integer",
    "less_than": "is too large",
    "less_than_equal": "is too large",
    "list_type": "is not a JSON list",
    "literal_error": "is not a choice",
    "missing": "lacks an item",
    "multiple_of": "is not a multiple",
    "string_pattern_mismatch": "does not match",
    "string_too_long": "is too long",
    "string_too_short": "is too short",
    "string_type": "is not text",
    "string_unicode": "is not UTF-8 text",
    "too_long": "has too many items",
    "too_short": "has too few items",
    "tuple_type": "is not a JSON list",
}


@dataclass(frozen=True)
class Given:
    """One value set by the user.

    Attributes:
        variable: The setting.
        path: The variable's path with keys filled in.
        value: The decoded value, not yet validated.
        origin: "command line", "environment" or "FILE:LINE".
        rank: Precedence of its source; the higher wins.
    """

    variable: Variable
    path: Keys
    value: Any
    origin: str
    rank: int

    @property
    def name(self) -> str:
        """The full name of the environment variable."""
        return name_of(self.path)


def value_fault(name: str, variable: Variable, value: Any, problem: str, origin: str) -> str:
    """The fault of an invalid value; a secret one is not shown."""
    if variable.secret:
        subject = "the value (hidden)"
    elif value == "":
        subject, problem = "the value", "is empty"
    else:
        subject = quoted(value)
    note = ""
    if isinstance(value, str) and " #" in value and not variable.secret:
        note = " (a comment needs a line of its own)"
    return f"{name}: {subject} {problem}{note}; expected {variable.expected} [{origin}]"


def validation_faults(
    errors: Iterable[Mapping[str, Any]], given: Mapping[Keys, Given], catalogue: Catalogue
) -> List[str]:
    """One line per error of pydantic, in its order.

    Args:
        errors: From `ValidationError.errors()`.
        given: The user's values, by path.
        catalogue: All settings.
    """
    return [_validation_fault(error, given, catalogue) for error in errors]


def _validation_fault(error: Mapping[str, Any], given: Mapping[Keys, Given], catalogue: Catalogue) -> str:
    where: Tuple[Any, ...] = tuple(error["loc"])
    prefixes = [tuple(str(part) for part in where[:length]) for length in range(len(where), 0, -1)]
    setter = next((given[path] for path in prefixes if path in given), None)
    if setter is not None:
        rest = where[len(setter.path) :]
        name = setter.name + "".join(f"[{part!r}]" for part in rest)
        problem = _PROBLEMS.get(error["type"], "cannot be used")
        return value_fault(name, setter.variable, error["input"], problem, setter.origin)
    path = prefixes[0]
    variable = catalogue.find(path)
    near = {entry.origin: entry.name for entry in given.values() if entry.path[: len(path) - 1] == path[:-1]}
    because = "; ".join(f"{name}, {origin}" for origin, name in near.items()) or "default"
    if variable is not None:
        return f"{name_of(path)}: is missing; expected {variable.expected} [needed by {because}]"
    return cross_field_fault(path, str(error.get("ctx", {}).get("error", error["msg"])), given)


def cross_field_fault(path: Keys, problem: str, given: Mapping[Keys, Given], item: str = "") -> str:
    """The fault of settings that contradict each other, with the origins of all values at, above or under `path`."""
    involved = [entry for entry in given.values() if path[: len(entry.path)] == entry.path]
    name = name_of(path) + item
    below = [entry for entry in given.values() if entry.path[: len(path)] == path]
    if below and not involved:
        involved = below
        name += "__*"
    because = "; ".join(f"{entry.name}, {entry.origin}" if name.endswith("*") else entry.origin for entry in involved)
    return f"{name}: {problem} [{because or 'default'}]"
