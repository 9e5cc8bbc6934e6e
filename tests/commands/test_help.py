"""Help texts of the command line."""

import pytest

from edge_agent.cli import COMMANDS, main


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["model", "build"], ["outbox", "purge"]])
def test_every_command_describes_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    usage, about, *_ = capsys.readouterr().out.split("\n\n")
    assert ended.value.code == 0
    assert usage.startswith(f"usage: edge-agent {' '.join(words)}") and about[0].isupper() and about.endswith(".")


def test_without_a_command_all_commands_are_listed(capsys):
    assert main([]) == 2
    printed = capsys.readouterr().err
    assert all(f"    {name} " in printed for name in COMMANDS)
