"""Folders of real video files, made here: lists and splits, what can be wrong with a file, clips, flow."""

import os
import shutil
import wave

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from convgru_fused.cli import main
from convgru_fused.data import (
    FlowCache,
    FlowClips,
    LimitedLifetimeDots,
    TestClips,
    VideoClips,
    WithFlow,
    check_videos,
    flow,
    hmdb51,
    optical_flow,
    ucf101,
    video_clips,
    video_folder,
)
from convgru_fused.data.decoding import probe, read_frames
from convgru_fused.data.video_clips import resized
from convgru_fused.training.catalogue import FAMILIES
from convgru_fused.training.engine import RECORD, Run, evaluate, train

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")

CLASSES = ("Left", "Right")
FRAMES, H, W = 18, 48, 64


def texture(height, width, seed):
    """Blobs, (3,H,W) in 0..1."""
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def write_video(path, frames, rate=25):
    """frames (T,H,W,3) bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def moving(velocity, seed):
    """A texture behind a window that makes it move by so many pixels a frame to the right."""
    wide = texture(H, 160, seed)
    starts = [48 - velocity * t for t in range(FRAMES)]
    clip = torch.stack([wide[:, :, start : start + W] for start in starts])
    return (clip.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What moves to the left, and what moves to the right, in UCF101's layout."""
    folder = tmp_path_factory.mktemp("videos")
    for label, name in enumerate(CLASSES):
        for group in range(4):
            video = moving(2 * label * 2 - 2, seed=group)
            write_video(folder / name / f"v_{name}_g{group + 1:02d}_c01.avi", video)
    return folder


@pytest.fixture
def splits(tmp_path):
    """Official lists: three groups to train on, one to test on."""
    (tmp_path / "classInd.txt").write_text("1 Left\n2 Right\n")
    names = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in CLASSES for group in range(1, 5)]
    (tmp_path / "trainlist01.txt").write_text(
        "".join(f"{name} {1 + CLASSES.index(name.split('/')[0])}\n" for name in names if "g04" not in name)
    )
    (tmp_path / "testlist01.txt").write_text("".join(f"{name}\n" for name in names if "g04" in name))
    return tmp_path


@pytest.fixture(scope="module")
def checked(root):
    return check_videos(video_folder(root))


# Files.


def test_frames_of_a_file(tmp_path):
    levels = torch.arange(0, 240, 20, dtype=torch.uint8)
    file = write_video(tmp_path / "grey.avi", levels[:, None, None, None].expand(-1, H, W, 3), rate=10)
    info = probe(file)
    assert (info.frames, info.width, info.height, info.rate) == (12, W, H, 10.0)
    frames = read_frames(file, [7, 2, 7])
    assert frames.shape == (3, 3, H, W) and frames.dtype == torch.uint8
    assert (frames.float().mean((1, 2, 3)) - torch.tensor([140.0, 40.0, 140.0])).abs().max() < 3
    with pytest.raises(ValueError, match=r"grey\.avi: expected a frame number 12"):
        read_frames(file, [3, 12])


def broken(root, folder):
    """Files that are no videos, or not whole ones; of each what is said."""
    whole = (root / "Left" / "v_Left_g01_c01.avi").read_bytes()
    files = {
        "noise.avi": (bytes(range(256)) * 40, "FFmpeg can decode"),
        "empty.avi": (b"", "no bytes"),
        "cut.avi": (whole[: len(whole) // 4], r"at least 10 frames|FFmpeg can decode|none that decodes"),
    }
    found = []
    for name, (content, said) in files.items():
        (folder / name).write_bytes(content)
        found.append((folder / name, said))
    with wave.open(str(folder / "sound.mkv"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    found.append((folder / "sound.mkv", "expected a video stream, got audio"))
    found.append((folder / "gone.avi", "No such file"))
    return found


def test_files_that_cannot_be_used(root, tmp_path):
    """Each is named with the reason; those that can be used remain."""
    good = video_folder(root)
    for file, said in broken(root, tmp_path):
        files, labels = (*good.files, file), (*good.labels, 0)
        videos = type(good)(files, labels, good.classes)
        with pytest.raises(ValueError, match=said) as caught:
            check_videos(videos)
        assert str(file) in str(caught.value)
        with pytest.warns(UserWarning, match=file.name):
            assert check_videos(videos, on_error="skip").videos == good
    with pytest.raises(ValueError, match="got none of 8"), pytest.warns(UserWarning):
        check_videos(good, frames=FRAMES + 1, on_error="skip")


def test_rate(root):
    assert len(check_videos(video_folder(root), rate=25).videos) == 8
    with pytest.raises(ValueError, match=r"g01_c01\.avi: expected 30 frames a second, got 25"):
        check_videos(video_folder(root), rate=30)


def test_index(root, tmp_path, monkeypatch):
    """Files that have not changed are not decoded again."""
    index, videos = tmp_path / "index.json", video_folder(root)
    first = check_videos(videos, index=index)
    monkeypatch.setattr(video_clips, "probe", lambda file: pytest.fail("decoded again"))
    assert check_videos(videos, index=index) == first
    monkeypatch.undo()
    index.write_text("[")
    with pytest.warns(UserWarning, match="looked at again"):
        assert check_videos(videos, index=index) == first


# Lists.


def test_ucf101(root, splits):
    train, test = ucf101(root, splits), ucf101(root, splits, train=False)
    assert train.classes == test.classes == CLASSES
    assert (len(train), len(test)) == (6, 2)
    assert train.labels == (0, 0, 0, 1, 1, 1)
    assert test.files[1] == root / "Right" / "v_Right_g04_c01.avi"
    assert not set(train.files) & set(test.files)
    check_videos(train)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("classInd.txt", "Left\n", r"classInd\.txt:1: expected a number and a class, got 'Left'"),
        ("trainlist01.txt", None, r"trainlist01\.txt: expected a list of videos, got: No such file"),
        ("trainlist01.txt", "\n", r"trainlist01\.txt: expected a list of videos, got an empty file"),
        ("testlist01.txt", "\nUp/v_Up.avi\n", r"testlist01\.txt:2: expected a class of classInd\.txt"),
        ("trainlist01.txt", "Left/v_Left_g01_c01.avi 1\n", "every class that is tested, got none of Right"),
    ],
)
def test_lists_that_are_wrong(root, splits, file, text, said):
    if text is None:
        (splits / file).unlink()
    else:
        (splits / file).write_text(text)
    with pytest.raises(ValueError, match=said):
        ucf101(root, splits)


def test_hmdb51(root, tmp_path):
    for name in CLASSES:
        lines = [f"v_{name}_g{group:02d}_c01.avi {kind}" for group, kind in enumerate((1, 1, 2, 0), 1)]
        (tmp_path / f"{name}_test_split1.txt").write_text("\n".join(lines))
    train, test = hmdb51(root, tmp_path), hmdb51(root, tmp_path, train=False)
    assert train.classes == CLASSES and train.labels == (0, 0, 1, 1) and test.labels == (0, 1)
    assert test.files[0] == root / "Left" / "v_Left_g03_c01.avi"
    check_videos(train)
    with pytest.raises(ValueError, match=r"CLASS_test_split2\.txt, found none"):
        hmdb51(root, tmp_path, split=2)
    (tmp_path / "Left_test_split1.txt").write_text("v.avi 3\n")
    with pytest.raises(ValueError, match=r"split1\.txt:1: expected a file and 0, 1 or 2"):
        hmdb51(root, tmp_path)


def test_classes_of_a_folder(root, tmp_path):
    """Test videos have the numbers that their classes have in training."""
    (tmp_path / "Right").symlink_to(root / "Right")
    assert video_folder(tmp_path).labels == (0, 0, 0, 0)
    assert video_folder(tmp_path, CLASSES).labels == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="Right: expected a class among Left, Up, got another"):
        video_folder(tmp_path, ("Left", "Up"))


def test_folders_that_are_wrong(root, tmp_path):
    with pytest.raises(ValueError, match="root: expected a folder"):
        video_folder(tmp_path / "nowhere")
    (tmp_path / "Left").mkdir()
    (tmp_path / "Left" / "v.avi.part").write_bytes(b"unfinished")
    with pytest.raises(ValueError, match="one folder for each class, found none"):
        video_folder(tmp_path)


# Clips.


def test_clips_are_those_of_the_video(checked):
    """Without a choice: the whole of the middle, in order."""
    clips = VideoClips(checked, 8, frames=FRAMES, size=(H, H), crop_sides=[256], mirror=False)
    for i in range(8):
        clip, label = clips[i]
        place = clips.place(i)
        assert clip.shape == (FRAMES, 3, H, H) and clip.dtype == torch.float32
        expected = read_frames(checked.videos.files[place.video], range(FRAMES)).float() / 255
        assert torch.allclose(clip, place.crop(expected), atol=1e-5)
        assert label == checked.videos.labels[place.video]


def test_every_video_in_turn(checked):
    clips = VideoClips(checked, 24, seed=3)
    visits = [[clips.place(i).video for i in range(8 * visit, 8 * visit + 8)] for visit in range(3)]
    assert all(sorted(visit) == list(range(8)) for visit in visits)
    assert visits[0] != visits[1]


def test_places(checked):
    """All choices come up, and none leaves the video."""
    clips = VideoClips(checked, 300, frames=5, stride=2)
    places = [clips.place(i) for i in range(300)]
    assert {p.numbers[0] for p in places} == set(range(FRAMES - 8))
    assert {p.side for p in places} == {48, 42, 36, 31}
    assert {p.mirrored for p in places} == {False, True}
    assert all(p.top + p.side <= H and p.left + p.side <= W and p.numbers[-1] < FRAMES for p in places)
    assert {p.left for p in places if p.side == 48} == set(range(17))


def test_items_do_not_depend_on_workers(checked):
    clips = VideoClips(checked, 12, seed=5, frames=4, size=(16, 16))
    alone = [clip for clip, _ in DataLoader(clips, 4)]
    together = [clip for clip, _ in DataLoader(clips, 4, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(clips[0][0], VideoClips(checked, 12, seed=6, frames=4, size=(16, 16))[0][0])


def test_order_of_frames(checked):
    forward, reverse, shuffled = (
        VideoClips(checked, 4, frames=6, size=(16, 16), order=order)[1][0]
        for order in ("forward", "reversed", "shuffled")
    )
    assert torch.equal(reverse, forward.flip(0))
    assert not torch.equal(shuffled, forward)
    assert torch.equal(shuffled.sort(0).values, forward.sort(0).values)


def test_test_clips(checked):
    clips, label = TestClips(checked, frames=4, size=(16, 16), clips=3)[5]
    assert clips.shape == (30, 4, 3, 16, 16) and label == checked.videos.labels[5]
    assert torch.equal(clips[1], clips[0].flip(-1))
    middle, _ = TestClips(checked, frames=4, size=(16, 16), clips=3, ten_crops=False)[5]
    assert torch.equal(middle, clips[:6:2])
    with pytest.raises(IndexError):
        TestClips(checked)[8]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 19}, r"\.avi: expected at least 19 frames, got 18"),
        ({"stride": 2}, r"\.avi: expected at least 19 frames, got 18"),
        ({"crop_sides": [300]}, r"crop_sides: expected at most 256"),
        ({"order": "sideways"}, "order: expected one of"),
        ({"size": (16,)}, "size: expected 2 sizes"),
    ],
)
def test_arguments_that_are_wrong(checked, options, said):
    with pytest.raises(ValueError, match=said):
        VideoClips(checked, 4, **options)


# Flow.


@pytest.mark.parametrize(("method", "most"), [("dis", 0.4), ("tvl1", 0.2)])
def test_flow_of_a_shift(method, most):
    """dx is the first component and points to the right; dy down. Pixels of error, away from the edges."""
    image = (texture(80, 96, seed=0) * 255).to(torch.uint8)
    a, b = image[:, 8:72, 8:88], image[:, 10:74, 5:85]  # what is at (x,y) in a is at (x+3,y-2) in b
    found = optical_flow(torch.stack((a, b)), method)[0, :, 12:-12, 12:-12]
    assert (found - torch.tensor([3.0, -2.0])[:, None, None]).norm(dim=0).mean() < most


def test_bytes_and_back():
    fields = torch.randn(5, 2, 9, 11) * torch.tensor([0.0, 0.1, 1, 5, 30]).view(-1, 1, 1, 1)
    quantised, ranges = flow.to_bytes(fields)
    assert quantised.dtype == torch.uint8
    error = (flow.from_bytes(quantised, ranges) - fields).abs().amax((1, 2, 3))
    assert (error <= (ranges[:, 1] - ranges[:, 0]) / 510 * 1.001).all()


def test_cache(root, tmp_path, monkeypatch):
    video, cache = root / "Right" / "v_Right_g01_c01.avi", FlowCache(tmp_path)
    first = cache.flow(video, FRAMES, range(2, 6))
    assert first.shape == (4, 2, H, W)
    assert abs(first[:, 0, 12:-12, 12:-12].mean().item() - 2) < 0.3
    with monkeypatch.context() as patch:
        patch.setattr(flow, "optical_flow", lambda *_: pytest.fail("computed again"))
        assert torch.equal(cache.flow(video, FRAMES, range(2, 6)), first)
    kept = cache.file_of(video)
    kept.write_bytes(kept.read_bytes()[:200])
    assert torch.equal(cache.flow(video, FRAMES, range(2, 6)), first)
    assert FlowCache(tmp_path, "tvl1").file_of(video) != kept


def test_clips_with_flow(checked, tmp_path):
    """Their flow is that of their frames, in the pixels these have, also in a mirror."""
    clips = FlowClips(checked, 24, FlowCache(tmp_path), frames=6, size=(96, 96), crop_sides=[256, 192])
    signs = set()
    for i in range(24):
        (clip, fields), label = clips[i]
        assert clip.shape == (6, 3, 96, 96) and fields.shape == (5, 2, 96, 96)
        place = clips.place(i)
        dx = fields[:, 0, 24:-24, 24:-24].mean().item()
        expected = (2 if label else -2) * 96 / place.side * (-1 if place.mirrored else 1)
        assert abs(dx - expected) < 0.15 * abs(expected)
        signs.add((label, place.mirrored))
    assert len(signs) == 4


def test_flow_of_what_is_shown(checked):
    """Of frames as they are cut and ordered; of every clip of a video."""
    clips = VideoClips(checked, 3, frames=5, size=(48, 48), order="reversed")
    (clip, fields), label = WithFlow(clips)[1]
    expected = optical_flow((clip * 255).round().to(torch.uint8))
    assert torch.equal(fields, expected) and torch.equal(clip, clips[1][0]) and label == clips[1][1]
    several, _ = WithFlow(TestClips(checked, frames=5, size=(48, 48), clips=2, ten_crops=False))[0]
    assert several[0].shape == (2, 5, 3, 48, 48) and several[1].shape == (2, 4, 2, 48, 48)
    grey = LimitedLifetimeDots(2)
    (clip, fields), _ = WithFlow(grey)[0]
    assert fields.shape == (grey.frames - 1, 2, *grey.frame_shape[1:])
    loader = DataLoader(WithFlow(clips), 1, num_workers=1)
    assert torch.equal(list(loader)[1][0][1][0], WithFlow(clips)[1][0][1])


@pytest.mark.parametrize("options", [{"stride": 2}, {"order": "shuffled"}])
def test_no_flow_of_other_orders(checked, tmp_path, options):
    with pytest.raises(ValueError, match="where there is flow"):
        FlowClips(checked, 4, FlowCache(tmp_path), **options)


def test_frames_that_have_no_flow():
    with pytest.raises(ValueError, match="at least 2 frames"):
        optical_flow(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="expected a Tensor of bytes"):
        optical_flow(torch.zeros(2, 3, 8, 8))


# Training.


def options_of(root, splits, **options):
    return {"root": str(root), "splits": str(splits), "layout": "ucf101", "frames": 10, **options}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_videos(root, splits, tmp_path, family):
    options = options_of(root, splits, frames=16)
    run = Run(family, "videos", steps=2, batch_size=2, task_options=options)
    result = train(run, tmp_path / "run")
    assert len(result.losses) == 2 and all(loss > 0 for loss in result.losses)
    assert {result.accuracy, result.shuffled_accuracy, result.reversed_accuracy} <= {0.0, 0.5, 1.0}


@pytest.fixture
def plain_folder(root, tmp_path):
    """Without official lists."""
    folder = tmp_path / "videos"
    for part, groups in (("train", (1, 2, 3)), ("test", (4,))):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for group in groups:
                file = f"v_{name}_g{group:02d}_c01.avi"
                (folder / part / name / file).symlink_to(root / name / file)
    return folder


def test_train_on_a_folder(plain_folder, tmp_path, capsys):
    """A file that is no video is left out, if asked to."""
    (plain_folder / "train" / "Left" / "cut.avi").write_bytes(b"RIFF")
    command = ["train", "--family", "single_frame", "--task", "videos", "--root", str(plain_folder)]
    command += ["--steps", "2", "--batch-size", "2", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "cut.avi" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"cut\.avi"):
        assert main([*command, "--on-error", "skip", "--amp", "bfloat16"]) == 0
    assert (tmp_path / "run" / RECORD).exists()
    assert main(command[:5]) == 2
    assert "--root: expected the folder of the videos" in capsys.readouterr().err


def test_compare_on_a_folder(plain_folder, tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"""
seeds: 1
budget: 20000
families: [single_frame, two_stream, grurcn]
tasks: {{videos: {{steps: 2, batch_size: 2, task_options: {{root: {plain_folder}}}}}}}
""")
    assert main(["compare", "--config", str(plan), "--out", str(tmp_path), "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 runs" in printed and "videos (chance 0.5)" in printed
    for family in ("single_frame", "two_stream", "grurcn"):
        assert (tmp_path / "runs" / f"videos-{family}-0" / RECORD).exists()


# Which frames, places and files.


def test_index_of_a_file_that_has_changed(root, tmp_path):
    folder, index = tmp_path / "videos" / "Left", tmp_path / "index.json"
    folder.mkdir(parents=True)
    file = folder / "a.avi"
    shutil.copy(root / "Left" / "v_Left_g01_c01.avi", file)
    assert check_videos(video_folder(folder.parent), index=index).infos[0].frames == 18
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    content = bytearray(file.read_bytes())
    content[: len(content)] = bytes(len(content))  # as large as before, and no video
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.avi: expected a video that FFmpeg can decode"):
        check_videos(video_folder(folder.parent), index=index)


def test_places_of_test_clips(checked):
    side = 24  # 128 of 256, of 48
    clips, _ = TestClips(checked, frames=4, size=(side, side), stride=2, clips=3, crop_side=128)[5]
    expected = []
    for top, left in ((12, 20), (0, 0), (0, W - side), (H - side, 0), (H - side, W - side)):
        for start in (0, 6, 11):
            frames = read_frames(checked.videos.files[5], range(start, start + 7, 2)).float() / 255
            crop = frames[..., top : top + side, left : left + side]
            expected += [crop, crop.flip(-1)]
    torch.testing.assert_close(clips, torch.stack(expected), rtol=0, atol=1e-6)


def test_numbers_of_frames(checked):
    place = VideoClips(checked, 4, frames=5, stride=3).place(2)
    assert len(place.numbers) == 5 and place.numbers.step == 3


def test_what_shrinks_is_smoothed():
    stripes = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(8).expand(1, 3, 32, 32)
    assert (resized(stripes, (8, 8))[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.2


def test_flow_of_frames_that_are_no_squares(checked, tmp_path):
    options = dict(frames=6, size=(48, 96), crop_sides=[256], mirror=False)
    for (_, fields), label in Subset(FlowClips(checked, 8, FlowCache(tmp_path), **options), range(8)):
        dx = fields[:, 0, 12:-12, 24:-24].mean().item()
        assert dx == pytest.approx(4 if label else -4, rel=0.15)


def test_flow_is_that_of_the_frames_of_the_clip(checked, tmp_path):
    clips = FlowClips(
        checked, 8, FlowCache(tmp_path), frames=18, size=(48, 48), crop_sides=[256], mirror=False
    )
    for i in range(8):
        place = clips.place(i)
        expected = clips.cache.flow(checked.videos.files[place.video], 18, range(17))
        torch.testing.assert_close(clips[i][0][1], place.crop(expected), rtol=0, atol=1e-5)


def test_flow_of_a_video_that_has_changed_is_kept_elsewhere(tmp_path):
    video, cache = tmp_path / "a.avi", FlowCache(tmp_path)
    video.write_bytes(b"1")
    os.utime(video, ns=(0, 10))
    places = {cache.file_of(video)}
    os.utime(video, ns=(0, 20))
    places.add(cache.file_of(video))
    video.write_bytes(b"12")
    os.utime(video, ns=(0, 20))
    places.add(cache.file_of(video))
    assert len(places) == 3


def test_videos_to_train_on_and_to_test_on(plain_folder, root, splits):
    plain = Run("lrcn", "videos", task_options={"root": str(plain_folder)})
    for name in ("trainlist", "testlist"):
        (splits / f"{name}02.txt").write_text((splits / f"{name}01.txt").read_text())
        (splits / f"{name}01.txt").unlink()
    listed = Run("lrcn", "videos", task_options=options_of(root, splits, split=2))
    for run in (plain, listed):
        training, test = (run.clips(1, test=test).checked.videos.files for test in (False, True))
        assert {file.name[-11:-8] for file in training} == {"g01", "g02", "g03"}
        assert {file.name[-11:-8] for file in test} == {"g04"}


def test_scores_of_a_video_are_averaged(root, splits):
    clips = Run("lrcn", "videos", task_options=options_of(root, splits, clips=4)).clips(1, test=True)

    class Model(torch.nn.Module):
        def forward(self, clip):
            scores = torch.tensor([[0.99, 0.01], [0.3, 0.7], [0.3, 0.7], [0.3, 0.7]]).log()
            return scores.repeat(len(clip) // 4, 1)

    # The mean of the probabilities is for the second class, that of their logarithms for the first.
    assert [evaluate(Model(), Subset(clips, [i])) for i in range(2)] == [0.0, 1.0]
