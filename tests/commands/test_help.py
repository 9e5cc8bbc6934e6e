"""What the command line says of itself."""

import pytest

from edge_agent.cli import COMMANDS, main


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["model", "build"], ["outbox", "purge"]])
def test_every_command_describes_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    usage, says, *_ = capsys.readouterr().out.split("\n\n")
    assert ended.value.code == 0
    assert usage.startswith(f"usage: edge-agent {' '.join(words)}") and says[0].isupper() and says.endswith(".")


def test_no_command_at_all_is_answered_with_all_of_them(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert all(f"    {name} " in said for name in COMMANDS)
