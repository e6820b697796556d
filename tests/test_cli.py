"""What every command does alike: errors of the system and interruptions are one line and an exit status."""

import pytest

from convgru_fused import cli
from convgru_fused.files import replace_file

BENCH = ["bench", "--rows", "tiny", "--video", "none", "--mode", "forward", "--peers", "none"]
TRAIN = ["train", "--family", "grurcn", "--task", "dots", "--steps", "1"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([*BENCH, "--json", "FILE/x.json"], "FILE"),
        ([*TRAIN, "--out", "FILE"], "FILE"),
        (["compare", "--preset", "quick", "--out", "FILE"], "FILE"),
        ([*TRAIN, "--device", "gpu"], "--device: expected cpu, cuda or cuda:N, got 'gpu'"),
        ([*TRAIN, "--save-every", "0"], "--save-every: expected at least 1, got 0"),
        (["compare", "--preset", "quick", "--device", "gpu"], "--device: expected cpu, cuda or cuda:N"),
        (["compare", "--preset", "quick", "--minutes", "-1"], "--minutes: expected at least 0, got -1"),
        (["fuse", "operator:itemgetter"], "'operator:itemgetter' raised TypeError: "),
    ],
    ids=str,
)
def test_bad_requests(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("no folder")
    assert cli.main([part.replace("FILE", str(file)) for part in command]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words.replace("FILE", str(file)) in said[0]
    assert file.read_text() == "no folder"


def test_interrupted(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.command, "run", interrupted)
    assert cli.main(BENCH) == 130
    assert capsys.readouterr().err == "convgru-fused: interrupted\n"


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        replace_file(folder, lambda part: part.write_text("text"))
    assert list(tmp_path.iterdir()) == [folder]
