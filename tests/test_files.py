import errno
from pathlib import Path

import pytest

from hybrid_kernels._files import write_file


@pytest.mark.parametrize("content", ["naïve\n", b"\x00\xff"])
def test_the_folder_is_made_and_the_content_replaced(content, tmp_path):
    path = tmp_path / "new" / "file"
    write_file(path, "old")
    write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_the_old_content_and_nothing_partial(error, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, "old")
    right = Path.write_bytes

    def half(self, content):
        right(self, content[:1])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)) as caught:
        write_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} could not be written: No space left on device"


def test_a_path_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/below could not be written: "):
        write_file(tmp_path / "file" / "below", "text")
