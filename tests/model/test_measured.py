"""What has been measured is kept, and taken over only where it is of the same."""

from __future__ import annotations

import pytest

from wagle.model.measured import Measured


def never():
    pytest.fail("this has been measured already")


@pytest.fixture
def path(tmp_path):
    """What an earlier attempt has kept."""
    path = tmp_path / "kept.json"
    Measured(path, {"of": [1]}).get("a", lambda: (1, 0.1), write=list)
    return path


def test_it_is_not_measured_again(path):
    again = Measured(path, {"of": [1]})
    assert again.earlier == ["a"]
    assert again.get("a", never, read=tuple) == (1, 0.1)
    assert again.get("b", lambda: 2) == 2
    assert Measured(path, {"of": [1]}).earlier == ["a", "b"]
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"measured": {"a": 1}}'])
def test_nothing_is_taken_from_a_damaged_file(path, content):
    path.write_text(content)
    assert Measured(path, {"of": [1]}).get("a", lambda: 3) == 3


def test_nothing_is_taken_of_another_origin(path):
    assert Measured(path, {"of": [2]}).earlier == []


def test_where_it_cannot_be_kept_it_still_counts(tmp_path, capsys):
    (tmp_path / "file").touch()
    measured = Measured(tmp_path / "file" / "kept.json", {})
    assert measured.get("a", lambda: 1) == 1
    assert measured.get("a", never) == 1
    assert "warning: a has been measured and is not kept" in capsys.readouterr().out


def test_nothing_is_kept_where_there_is_no_place():
    measured = Measured(None, {})
    assert measured.get("a", lambda: 1) == measured.get("a", never)
    measured.remove()
