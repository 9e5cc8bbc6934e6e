"""Declares a setting: its default, bounds and description.

Parameters are frozen dataclasses beside their algorithm. pydantic, in `config.settings`, and the generator of the
documentation read the metadata, so `core` depends on neither.
"""

from dataclasses import field
from typing import Any, Callable, Dict, Optional


def param(
    default: Any = None,
    description: str = "",
    *,
    factory: Optional[Callable[[], Any]] = None,
    restart: bool = False,
    secret: bool = False,
    show: bool = True,
    **bounds: Any,
) -> Any:
    """A dataclass field with description and bounds.

    Args:
        default: The default value (ignored when `factory` is given).
        description: One sentence: the unit, and the effect of raising or lowering it.
        factory: Creates a mutable default.
        restart: True when a change takes effect at the next start; False when it takes effect at a reload.
        secret: True when the value must never be shown.
        show: False keeps the value out of `repr`, because it may hold credentials; secrets never are in it.
        bounds: pydantic's `gt`, `ge`, `lt`, `le`, `min_length`, `max_length`, `pattern`.
    """
    metadata: Dict[str, Any] = {
        "description": description,
        "json_schema_extra": {"reload": "restart" if restart else "live", "secret": secret},
        **bounds,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=metadata, repr=show and not secret)
    return field(default=default, metadata=metadata, repr=show and not secret)
