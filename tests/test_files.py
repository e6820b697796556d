"""Files that are written as a whole."""

import pytest

from convgru_fused.files import replace_file


def test_who_reads_while_a_file_is_written_sees_the_one_before(tmp_path):
    file = tmp_path / "file"
    file.write_text("before")

    def write(part):
        part.write_text("half")
        assert file.read_text() == "before"

    replace_file(file, write)
    assert file.read_text() == "half"

    def stopped(part):
        part.write_text("quarter")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(file, stopped)
    assert file.read_text() == "half" and list(tmp_path.iterdir()) == [file]
