"""The env file's syntax. The expected values were checked against systemd 252's own parser (load_env_file)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import env_file
from edge_agent.errors import ConfigError


def parsed(text):
    return [(entry.name, entry.value) for entry in env_file.parse(text, "f.env")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=1\n", "1"),
        ("A=1", "1"),
        ("A=", ""),
        ("A = 1 \n", "1"),
        ("  A=1\n", "1"),
        ("A=1\r\n", "1"),
        ("A='x y' \"z\"  w \n", "x yzw"),
        ('A=a"b"c\n', 'a"b"c'),
        ("A=x 'r'\n", "x 'r'"),
        ("A='q' x 'r'\n", "qx 'r'"),
        ("A=a\\\nb\n", "ab"),
        ("A=x \\\n  y\n", "x   y"),
        ("A=a\\nb\\\\c\n", "anb\\c"),
        ("A=\\ x\\ \n", " x "),
        ('A="a\\nb\\$c\\"d\\`e\\\\f"\n', 'a\\nb$c"d`e\\f'),
        ('A="a\\\nb"', "ab"),
        ("A='a\\nb'\n", "a\\nb"),
        ("A='x\ny'\n", "x\ny"),
        ("A=x # y\n", "x # y"),
        ("A=x\u00a0\n", "x\u00a0"),
        ("A=#x\n", "#x"),
        ("A=$HOME ${HOME} `id`\n", "$HOME ${HOME} `id`"),
        ("A==\n", "="),
        ("A=x\\", "x"),
        ('A={"desk": [[0, 1]]}', '{"desk": [[0, 1]]}'),
    ],
)
def test_a_value_is_what_systemd_reads(text, value):
    assert parsed(text) == [("A", value)]


def test_comments_and_blank_lines_are_ignored():
    assert parsed("# a\n\n  ; b='\n \t\n#A=1\nB=2\n") == [("B", "2")]


def test_lines_are_counted_through_quotes_and_continuations():
    entries = env_file.parse("A='1\n2'\nB=1\\\n2\n\n# c\nC=1\r\nD=2", "f.env")
    assert [(entry.name, entry.line) for entry in entries] == [("A", 1), ("B", 3), ("C", 7), ("D", 8)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A=1\nhunter2\n", "f.env:2: no '=' on this line; expected NAME=value, or '#' before a comment"),
        ("export A=1\n", "f.env:1: leave out 'export'; expected NAME=value"),
        ("1A=x", "f.env:1: the text before '=' is not a variable name; expected letters, digits and _"),
        ("=x", "f.env:1: the text before '=' is not a variable name; expected letters, digits and _"),
        ("B=1\n\nA='x\ny\n", "f.env:3: a single quote is not closed"),
        ('A="x\\"', "f.env:1: a double quote is not closed"),
        ("A='x' # y", "f.env:1: a comment needs a line of its own, else it becomes part of the value"),
        ("A=x\0y", "f.env:1: the value holds a NUL character"),
    ],
)
def test_what_systemd_would_guess_or_ignore_is_refused_with_its_line(text, fault):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert caught.value.faults == (fault,)


def test_every_bad_line_is_reported():
    with pytest.raises(ConfigError) as caught:
        parsed("one\nA=1\ntwo\n")
    assert [fault.split(": ")[0] for fault in caught.value.faults] == ["f.env:1", "f.env:3"]


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")))
def test_quoted_values_come_back(value):
    assert parsed(f"A={env_file.quote(value)}\nB=1\n") == [("A", value), ("B", "1")]


@given(st.text("ab '\"\\$`\n\t\r#;=", max_size=12))
def test_quoted_special_characters_come_back(value):
    assert parsed(f"A={env_file.quote(value)}\nB=1\n") == [("A", value), ("B", "1")]


@given(st.text("Aab= '\"\\\n\t\r#;\0", max_size=30))
def test_any_text_is_understood_or_refused(text):
    try:
        parsed(text)
    except ConfigError as error:
        assert all(fault.startswith("f.env:") for fault in error.faults)


def test_json_and_uris_need_no_quotes():
    for value in ("[[0.1, 0.2], [1, 1]]", '{"desk": 1}', "rtsp://cam/1?x=$y"):
        assert env_file.quote(value) == value


def test_a_value_with_nul_cannot_be_quoted():
    with pytest.raises(ValueError, match="NUL"):
        env_file.quote("a\0b")


def test_files_that_cannot_be_read_are_named(tmp_path):
    latin = tmp_path / "latin.env"
    latin.write_bytes(b"A=1\nB=\xff\n")
    large = tmp_path / "large.env"
    large.write_bytes(b"#" * (env_file.LARGEST_BYTES + 1))
    expected = {
        tmp_path / "none.env": "none.env: the env file cannot be read: No such file or directory",
        tmp_path: "the env file cannot be read: Is a directory",
        latin: "latin.env:2: not UTF-8 text",
        large: "large.env: is larger than 1048576 bytes, so it is not an env file",
    }
    for path, fault in expected.items():
        with pytest.raises(ConfigError) as caught:
            env_file.read(path)
        assert len(caught.value.faults) == 1
        assert caught.value.faults[0].endswith(fault)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "bom.env"
    path.write_bytes(b"\xef\xbb\xbfA=1\n")
    assert [entry.name for entry in env_file.read(path)] == ["A"]
