"""What came of an nvinfer configuration: settings, and in plain words what was taken, left out, and contradicts."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Union

from edge_agent.config.env_file import quote
from edge_agent.config.nvinfer_file import Entry
from edge_agent.config.variables import Keys, name_of

# Of settings whose values are not shown.
_SECRET: Keys = ("model", "key")


@dataclass
class Report:
    """Filled while the file is read.

    Attributes:
        settings: Values as an env file has them, by path.
        taken: What became a setting, and what this agent does anyway, a sentence each.
        ignored: What has no meaning here, and why.
        differs: What this agent does otherwise, or the model contradicts.
    """

    settings: Dict[Keys, str] = field(default_factory=dict)
    taken: List[str] = field(default_factory=list)
    ignored: List[str] = field(default_factory=list)
    differs: List[str] = field(default_factory=list)

    def set(self, source: Union[Entry, str], path: Keys, value: object, remark: str = "") -> None:
        """A setting; `source` is what it came from."""
        text = value if isinstance(value, str) else repr(value)
        self.settings[path] = text
        shown = "***" if path == _SECRET else text
        what = _told(source, hide=path == _SECRET)
        self.taken.append(f"{what} -> {name_of(path)}={shown}{f'; {remark}' if remark else ''}")

    def agree(self, entry: Entry, why: str) -> None:
        """Something that this agent does anyway."""
        self.taken.append(f"{_told(entry)}: {why}")

    def ignore(self, entry: Entry, why: str) -> None:
        """Something without a meaning here."""
        self.ignored.append(f"{_told(entry)}: {why}")

    def differ(self, source: Union[Entry, str], what: str) -> None:
        """Something that this agent does otherwise, or that the model contradicts."""
        self.differs.append(f"{_told(source)}: {what}")

    def env_text(self, origin: str) -> str:
        """The settings as an env file."""
        lines = [f"{name_of(path)}={quote(value)}" for path, value in self.settings.items()]
        return "\n".join([f"# From {origin.splitlines()[0]} by edge-agent model import-deepstream", *lines, ""])


def _told(source: Union[Entry, str, None], hide: bool = False) -> str:
    if not isinstance(source, Entry):
        return str(source)
    line: Optional[str] = source.where.rpartition(":")[2]
    return f"line {line}: {f'{source.key}=***' if hide else source}"
