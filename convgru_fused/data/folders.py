"""Lists of labelled videos: plain folders, and the layouts and official splits of UCF101 and HMDB51."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from convgru_fused.checks import check_bool, check_int, check_names

EXTENSIONS = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class VideoList:
    """Videos with their classes, in an order that does not depend on the file system.

    Raises ValueError if there are none.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]  # of each file: the number of its class
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("videos: expected at least one, got none")

    def __len__(self) -> int:
        return len(self.files)


def video_folder(root: Path | str, classes: Sequence[str] | None = None) -> VideoList:
    """Videos in one folder for each class, root/CLASS/**/FILE.

    Args:
        root: the folder.
        classes: that there are, in their order: those of the training videos, for the test videos. None: the
            folders' names, sorted.

    Raises ValueError if there is no video, or a folder that is no class.
    """
    root = _folder("root", root)
    folders = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    classes = folders if classes is None else check_names("classes", classes)
    for name in folders:
        if name not in classes:
            raise ValueError(f"{root / name}: expected a class among {', '.join(classes)}, got another")
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in EXTENSIONS
    ]
    if not found:
        raise ValueError(f"{root}: expected videos in one folder for each class, found none")
    return _listed(found, classes)


def ucf101(root: Path | str, splits: Path | str, split: int = 1, train: bool = True) -> VideoList:
    """UCF101 or what is laid out like it (Soomro et al. 2012, arXiv 1212.0402).

    Args:
        root: the folder with a folder of videos for each class.
        splits: the folder of the official lists: classInd.txt ("1 ApplyEyeMakeup"), trainlist01.txt
            ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1") and testlist01.txt (without the number).
        split: 1, 2 or 3.
        train: the training list, else the test list.

    Raises:
        ValueError: a list is missing or has a line of another form, names a class that classInd.txt lacks,
            or the training list has none of a class that the test list has. Missing videos are found when
            the videos are checked (`check_videos`).
    """
    root, folder = _folder("root", root), _folder("splits", splits)
    check_int("split", split)
    check_bool("train", train)
    numbers = {}
    for place, line in _lines(folder / "classInd.txt"):
        words = line.split()
        if len(words) != 2 or not words[0].isdigit():
            raise ValueError(f"{place}: expected a number and a class, got {line!r}")
        numbers[words[1]] = int(words[0])
    classes = sorted(numbers, key=lambda name: numbers[name])

    def listed(part: str) -> list[tuple[Path, int]]:
        found = []
        for place, line in _lines(folder / f"{part}list{split:02d}.txt"):
            name = line.split()[0]
            if name.split("/")[0] not in numbers:
                raise ValueError(f"{place}: expected a class of classInd.txt before the '/', got {line!r}")
            found.append((root / name, classes.index(name.split("/")[0])))
        return found

    return _with_known_classes(listed("train"), listed("test"), classes, train, folder)


def hmdb51(root: Path | str, splits: Path | str, split: int = 1, train: bool = True) -> VideoList:
    """HMDB51 or what is laid out like it (Kuehne et al. 2011).

    Args:
        root: the folder with a folder of videos for each class.
        splits: the folder of the official lists, one for each class: brush_hair_test_split1.txt with lines
            "FILE.avi 1"; 1 is training, 2 test, 0 neither.
        split, train: as in `ucf101`.

    Raises ValueError as `ucf101` does.
    """
    root, folder = _folder("root", root), _folder("splits", splits)
    check_int("split", split)
    check_bool("train", train)
    end = f"_test_split{split}.txt"
    lists = sorted(folder.glob(f"*{end}"))
    if not lists:
        raise ValueError(f"{folder}: expected lists named CLASS{end}, found none")
    classes = [file.name.removesuffix(end) for file in lists]
    parts: dict[str, list[tuple[Path, int]]] = {"0": [], "1": [], "2": []}
    for label, (name, file) in enumerate(zip(classes, lists, strict=True)):
        for place, line in _lines(file):
            words = line.split()
            if len(words) != 2 or words[1] not in parts:
                raise ValueError(f"{place}: expected a file and 0, 1 or 2, got {line!r}")
            parts[words[1]].append((root / name / words[0], label))
    return _with_known_classes(parts["1"], parts["2"], classes, train, folder)


def _with_known_classes(
    training: list[tuple[Path, int]],
    test: list[tuple[Path, int]],
    classes: list[str],
    train: bool,
    folder: Path,
) -> VideoList:
    """One of the two lists; nobody can learn a class that is in the test list alone."""
    unknown = {label for _, label in test} - {label for _, label in training}
    if unknown:
        names = ", ".join(classes[label] for label in sorted(unknown))
        raise ValueError(
            f"{folder}: expected training videos of every class that is tested, got none of {names}"
        )
    return _listed(training if train else test, classes)


def _listed(found: Iterable[tuple[Path, int]], classes: Iterable[str]) -> VideoList:
    files, labels = zip(*found, strict=True)
    return VideoList(files, labels, tuple(classes))


def _folder(name: str, value: Path | str) -> Path:
    folder = Path(value)
    if not folder.is_dir():
        raise ValueError(f"{name}: expected a folder, found none at {folder}")
    return folder


def _lines(file: Path) -> list[tuple[str, str]]:
    """The lines of a list that are not empty, each after where it stands."""
    try:
        text = file.read_text()
    except OSError as error:
        raise ValueError(f"{file}: expected a list of videos, got: {error.strerror}") from None
    lines = [(f"{file}:{number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{file}: expected a list of videos, got an empty file")
    return lines
