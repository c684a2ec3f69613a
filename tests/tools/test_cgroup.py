"""Which cgroup is taken, on folders that look like the kernel's."""

import pytest

from rmas_jax.tools import cgroup
from rmas_jax.tools.cgroup import memory_group


@pytest.fixture
def tree(monkeypatch, tmp_path):
    """A mount of cgroups in which this process is in user/app/shell; app limits memory below it."""
    shell = tmp_path / "mount/user/app/shell"
    shell.mkdir(parents=True)
    for folder, controllers in (
        (shell, ""),
        (shell.parent, "cpu memory"),
        (tmp_path / "mount", ""),
    ):
        (folder / "cgroup.subtree_control").write_text(controllers)
        (folder / "cgroup.procs").touch()
    (tmp_path / "own").write_text("4:memory:/other\n0::/user/app/shell\n")
    monkeypatch.setattr(cgroup, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    return tmp_path


def test_a_group_is_made_where_memory_is_limited_and_removed(tree):
    with memory_group(1 << 20) as group, memory_group(2 << 20) as other:
        assert group.parent == other.parent == tree / "mount/user/app"
        assert (group / "memory.max").read_text() == str(1 << 20)
        assert (other / "memory.max").read_text() == str(2 << 20)
        for made in (group, other):  # which the kernel would do
            (made / "memory.max").unlink()
    assert not group.exists() and not other.exists()


@pytest.mark.parametrize("own", ["", "4:memory:/user/app/shell\n", "0::/../user\n", "0::/gone/x\n"])
def test_without_a_group_of_ones_own_there_is_none(tree, own):
    (tree / "own").write_text(own)
    with memory_group(1 << 20) as group:
        assert group is None


def test_where_memory_is_not_limited_there_is_none(tree):
    (tree / "mount/user/app/cgroup.subtree_control").write_text("cpu")
    with memory_group(1 << 20) as group:
        assert group is None


def test_where_none_may_be_made_there_is_none(tree, monkeypatch):
    monkeypatch.setattr(cgroup.os, "access", lambda *_: False)
    with memory_group(1 << 20) as group:
        assert group is None


def test_empty_groups_of_ended_makers_are_removed_and_others_stay(tree):
    app = tree / "mount/user/app"
    gone, used = app / "rmas-python-99999999-0", app / "rmas-python-99999998-0"
    mine = app / f"rmas-python-{cgroup.os.getpid()}-99"
    for group in (gone, used, mine):
        group.mkdir()
    (used / "cgroup.procs").touch()  # a group in use cannot be removed
    with memory_group(1 << 20):
        assert not gone.exists() and used.exists() and mine.exists()
