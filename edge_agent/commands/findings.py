"""What a check says of one thing."""

from dataclasses import dataclass

OK, NOTE, FAIL = "ok", "note", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of `edge-agent check`.

    Attributes:
        name: Of the thing.
        state: "ok"; "note" for what is not there but not needed either; "fail" for what the settings need.
        found: What is there, or what is wrong.
        remedy: What to do, when it is not "ok".
    """

    name: str
    state: str
    found: str
    remedy: str = ""
