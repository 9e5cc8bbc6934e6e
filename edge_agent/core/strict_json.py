"""JSON from strangers: small, shallow, finite, unambiguous, or refused in words that repeat nothing of it."""

import json
import math
from typing import Any, Dict, List, NoReturn, Tuple

MAX_BYTES = 4096
MAX_DEPTH = 8
MAX_DIGITS = 20
"""Python 3.8 converts integers of any length, in quadratic time."""


def parse(payload: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The value; strings in it are valid Unicode, numbers finite.

    Raises:
        ValueError: Too large, not UTF-8, not JSON, too deep, a key twice, NaN or infinity, a number too long.
    """
    if len(payload) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=_integer, parse_float=_finite
        )
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    # A lone surrogate, spelt \ud800, is valid JSON and no valid text.
    if "\\u" in text and not _is_text(value):
        raise ValueError("not Unicode")
    return value


def _depth(text: str) -> int:
    """The deepest nesting, judged before the recursive parser sees it."""
    deepest = depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN or infinity")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number too long")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
