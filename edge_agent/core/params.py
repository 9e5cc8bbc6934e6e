"""One place where a setting says its default, its bounds and its meaning.

Parameters live in frozen dataclasses beside their algorithm. The metadata below is read by pydantic when
`config.settings` loads them, and by the generated documentation, so `core` stays free of both.
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
    """A dataclass field that documents and bounds itself.

    Args:
        default: The default value (ignored when `factory` is given).
        description: One sentence: the unit, and the effect of turning it up or down.
        factory: Makes a mutable default.
        restart: True when a change takes effect only at the next start; else it is live.
        secret: True when the value must never be shown.
        show: False keeps the value out of `repr`, because it may hold credentials; a secret is never in it.
        bounds: `gt`, `ge`, `lt`, `le`, `min_length`, `max_length`, `pattern`, as pydantic names them.
    """
    metadata: Dict[str, Any] = {
        "description": description,
        "json_schema_extra": {"reload": "restart" if restart else "live", "secret": secret},
        **bounds,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=metadata, repr=show and not secret)
    return field(default=default, metadata=metadata, repr=show and not secret)
