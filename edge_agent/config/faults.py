"""What is wrong with a setting, in one line: the variable, its value's fault, what was expected, where it came from."""

from dataclasses import dataclass
from typing import Any, Iterable, List, Mapping, Tuple

from edge_agent.config.variables import Catalogue, Keys, Variable, name_of, quoted

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
    """One value that the user has set.

    Attributes:
        variable: What it sets.
        path: The variable's path with keys filled in.
        value: Decoded, not yet validated.
        origin: "command line", "environment" or "FILE:LINE".
        rank: Of its source; the higher wins.
    """

    variable: Variable
    path: Keys
    value: Any
    origin: str
    rank: int

    @property
    def name(self) -> str:
        """The environment variable's name in full."""
        return name_of(self.path)


def value_fault(name: str, variable: Variable, value: Any, problem: str, origin: str) -> str:
    """The line for a value that cannot be used; a secret one is not shown."""
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
    """One line per error of pydantic's, in its order.

    Args:
        errors: As `ValidationError.errors()` gives them.
        given: What the user has set, by path.
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
    return misfit_fault(path, str(error.get("ctx", {}).get("error", error["msg"])), given)


def misfit_fault(path: Keys, problem: str, given: Mapping[Keys, Given], item: str = "") -> str:
    """The line for settings that do not fit together, with all that was set at, above or under `path`."""
    involved = [entry for entry in given.values() if path[: len(entry.path)] == entry.path]
    name = name_of(path) + item
    below = [entry for entry in given.values() if entry.path[: len(path)] == path]
    if below and not involved:
        involved = below
        name += "__*"
    because = "; ".join(f"{entry.name}, {entry.origin}" if name.endswith("*") else entry.origin for entry in involved)
    return f"{name}: {problem} [{because or 'default'}]"
