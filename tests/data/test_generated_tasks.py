"""The generated tasks: repeatable, balanced, solvable from motion, and not from single frames."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from convgru_fused.data import EventGap, EventOrder, LimitedLifetimeDots, PathTracker
from convgru_fused.data.generated import generator_of
from convgru_fused.data.tasks import _AXES, _DIAGONALS

TASKS = [LimitedLifetimeDots, EventOrder, EventGap, PathTracker]
each_task = pytest.mark.parametrize("task", TASKS)


def clips_and_labels(task):
    clips, labels = zip(*(task[i] for i in range(len(task))), strict=True)
    return torch.stack(clips), torch.tensor(labels)


def accuracy(oracle, task):
    clips, labels = clips_and_labels(task)
    return (oracle(clips) == labels).double().mean().item()


# Items.


@each_task
def test_an_item_depends_on_seed_and_index_alone(task):
    items = task(20, seed=5)
    clip, label = items[13]
    torch.rand(3)  # torch's own generator has no part in it
    _ = items[2]
    again, same = task(14, seed=5)[13]
    assert torch.equal(clip, again) and label == same
    state = torch.get_rng_state()
    _ = items[3]
    assert torch.equal(torch.get_rng_state(), state)


@each_task
def test_items_differ(task):
    clips = [task(16, seed=seed)[i][0] for seed in (0, 1) for i in range(16)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(clips, 2))


@each_task
def test_format(task):
    items = task(24)
    assert len(items) == 24
    for clip, label in items:  # until IndexError
        assert clip.shape == (items.frames, *items.frame_shape) and clip.dtype == torch.float32
        assert clip.min() >= 0 and clip.max() <= 1
        assert isinstance(label, int)
    labels = clips_and_labels(items)[1]
    assert labels.bincount().tolist() == [24 // items.num_classes] * items.num_classes
    for index in (24, -1):
        with pytest.raises(IndexError, match=f"index: expected 0 to 23, got {index}"):
            items[index]


@each_task
def test_workers_give_the_same_items(task):
    items = task(6)
    expected, labels = clips_and_labels(items)
    batches = list(DataLoader(items, batch_size=3, num_workers=2))
    assert torch.equal(torch.cat([clips for clips, _ in batches]), expected)
    assert torch.equal(torch.cat([classes for _, classes in batches]), labels)


# Orders.


@each_task
def test_reversed(task):
    forward, backward = task(16), task(16, order="reversed")
    for (clip, label), (mirrored, other) in zip(forward, backward, strict=True):
        flipped = clip.flip(0)
        if task is PathTracker:  # the start is then the goal
            flipped = flipped[:, [0, 2, 1]]
        assert torch.equal(mirrored, flipped)
        assert other == forward.reversed_label(label)
        assert forward.reversed_label(other) == label


def test_reversed_labels():
    dots, events, paths = LimitedLifetimeDots(1), EventOrder(1), PathTracker(1)
    names = dots.classes
    assert [names[dots.reversed_label(i)] for i in (0, 1, 2, 3)] == [
        "left",
        "down left",
        "down",
        "down right",
    ]
    assert [events.classes[events.reversed_label(i)] for i in range(4)] == ["XX", "YX", "XY", "YY"]
    assert EventOrder(1, pairs="mixed").reversed_label(0) == 1
    assert [paths.reversed_label(i) for i in range(2)] == [0, 1]


@each_task
def test_shuffled(task):
    """The same frames, none beside one that was its neighbour."""
    for (clip, label), (shuffled, same) in zip(task(8), task(8, order="shuffled"), strict=True):
        assert label == same
        order = [next(i for i, f in enumerate(clip) if torch.equal(f, frame)) for frame in shuffled]
        assert sorted(order) == list(range(len(clip)))
        assert all(abs(a - b) > 1 for a, b in itertools.pairwise(order))


def test_a_clip_of_two_frames_is_shuffled_too():
    assert len(LimitedLifetimeDots(1, frames=2, order="shuffled")[0][0]) == 2


# Dots.


def direction(clips, pairs):
    """By phase correlation of some pairs of frames: the label whose step has the highest peak."""
    spectra = torch.fft.fft2(clips[:, :, 0].double())
    peaks = 0
    for a, b in pairs:
        product = spectra[:, b] * spectra[:, a].conj()
        peaks = peaks + torch.fft.ifft2(product / product.abs().clamp(min=1e-9)).real
    steps = 2 * torch.tensor(LimitedLifetimeDots.STEPS)
    return peaks[:, steps[:, 0], steps[:, 1]].argmax(1)


@pytest.mark.parametrize("t", [0, 1, 8])
def test_two_frames_tell_the_direction(t):
    """Any two: at every time, half of the dots live on."""
    assert accuracy(lambda clips: direction(clips, [(t, t + 1)]), LimitedLifetimeDots(400)) > 0.97


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_all_frames_tell_the_direction_and_its_opposite_backwards(order):
    pairs = list(itertools.pairwise(range(10)))
    assert accuracy(lambda clips: direction(clips, pairs), LimitedLifetimeDots(200, order=order)) == 1


def test_directions_are_the_steps_of_dots():
    """Without noise: what a clip of two frames shows."""
    items = LimitedLifetimeDots(8, frames=2, dots=1, lifetime=100, coherence=(1.0, 1.0), speed=3)
    for (clip, label), (row, column) in zip(items, items.STEPS, strict=True):
        assert torch.equal(clip[1], clip[0].roll((3 * row, 3 * column), (-2, -1))), items.classes[label]


def test_no_dot_is_followed_for_longer_than_its_lifetime():
    """Frames further apart than that, or shuffled, are at chance, 1/8."""
    pairs = [(t, t + 2) for t in range(8)]

    def twice_as_far(clips):  # every second frame: the same steps twice
        spectra = torch.fft.fft2(clips[:, :, 0].double())
        peaks = sum(torch.fft.ifft2(spectra[:, b] * spectra[:, a].conj()).real for a, b in pairs)
        steps = 4 * torch.tensor(LimitedLifetimeDots.STEPS)
        return peaks[:, steps[:, 0], steps[:, 1]].argmax(1)

    error = (1 / 8 * 7 / 8 / 400) ** 0.5
    assert abs(accuracy(twice_as_far, LimitedLifetimeDots(400)) - 1 / 8) < 3 * error
    assert accuracy(twice_as_far, LimitedLifetimeDots(80, lifetime=3)) > 0.9  # the test can tell
    every = list(itertools.pairwise(range(10)))
    shuffled = LimitedLifetimeDots(400, order="shuffled")
    assert abs(accuracy(lambda clips: direction(clips, every), shuffled) - 1 / 8) < 3 * error


# Events.


def signs(clips):
    """For each clip and sign, X or Y, how well it fits somewhere in each frame: (N,2,T)."""
    N, T = clips.shape[:2]
    templates = torch.stack([_DIAGONALS, _AXES])[:, None]
    return F.conv2d(clips.flatten(0, 1), templates).amax((-2, -1)).view(N, T, 2).transpose(1, 2)


def pair(clips):
    """The label of the signs that fit best in the first and in the second half."""
    fits = signs(clips)
    half = fits.size(2) // 2
    first, second = fits[..., :half].amax(2).argmax(1), fits[..., half:].amax(2).argmax(1)
    return 2 * first + second


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("gap", [4, 24, 64])
def test_signs_tell_the_class(gap, order):
    assert accuracy(pair, EventOrder(80, gap=gap, order=order)) == 1


def test_events_last_two_frames_and_are_a_gap_apart():
    gaps = []
    for clip, _ in EventOrder(200, gap=8):
        assert len(clip) == 32
        fits = signs(clip[None])[0]
        shown = (fits == 13).any(0).nonzero().flatten().tolist()  # a perfect fit
        assert len(shown) == 4 and shown[1] == shown[0] + 1 and shown[3] == shown[2] + 1
        assert 2 <= shown[0] <= 10 and 20 <= shown[2] <= 28
        gaps.append(shown[2] - shown[1] - 1)
        assert torch.equal(clip[shown[0]] == 1, clip[shown[1]] == 1)  # it does not move
    assert min(gaps) == 8 and max(gaps) == 24
    assert _DIAGONALS.sum() == _AXES.sum() == 13


def test_order_blind_models_are_capped():
    """The best guess from the set of signs is right for XX and YY, and for half of the others."""
    items = EventOrder(400, order="shuffled")

    def from_the_set(clips):
        shown = (signs(clips) > 12.9).sum(2)  # in two frames, or four
        return torch.where(shown[:, 0] == 4, 0, torch.where(shown[:, 1] == 4, 3, 1))

    assert accuracy(from_the_set, items) == items.order_blind_accuracy == 0.75
    mixed = EventOrder(400, order="shuffled", pairs="mixed")
    assert mixed.classes == ("XY", "YX") and mixed.order_blind_accuracy == 0.5
    error = (0.5 * 0.5 / 400) ** 0.5
    assert abs(accuracy(lambda clips: (pair(clips) != 1).long(), mixed) - 0.5) < 3 * error


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_gaps_are_what_is_asked_for(order):
    items = EventGap(400, gaps=(2, 18), order=order)
    far = EventGap(80, gaps=(18,), order=order)
    assert accuracy(pair, far) == 1  # whose events are in halves of their own
    gaps, begins = [], []
    for clip, _ in items:
        shown = (signs(clip[None])[0] == 13).any(0).nonzero().flatten().tolist()
        assert len(shown) == 4 and shown[1] == shown[0] + 1 and shown[3] == shown[2] + 1
        gaps.append(shown[2] - shown[1] - 1)
        if gaps[-1] == 2:
            begins.append(shown[0])
    assert set(gaps) == {2, 18} and abs(gaps.count(2) - 200) < 3 * (400 * 0.25) ** 0.5
    assert sorted(set(begins)) == [*range(9), *range(16, 25)]  # from the clip's start, or up to its end


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_gaps_that_windows_are_blind_to(order):
    """Sums over windows of ten frames say nothing of the order if both events are at the same place of one.
    Where they are not, to take late places for the first event is right more often than not."""

    def from_places(gap):
        items = EventGap(300, gaps=(gap,), starts=9 if gap == 18 else 10, pairs="mixed", order=order)
        right = 0.0
        for clip, label in items:
            shown = signs(clip[None])[0] == 13  # X and Y, frames
            place = [float((row.nonzero().flatten() % 10).sum()) for row in shown]
            right += 0.5 if place[0] == place[1] else float((place[0] > place[1]) == (label == 0))
        return right / len(items)

    assert from_places(18) == 0.5
    error = (0.5 * 0.5 / 300) ** 0.5
    assert abs(from_places(16) - 0.5) > 4 * error


# Paths.


GRID = torch.arange(32.0)


def window(places, radius):
    """(N,2) -> (N,H,W): a smooth window around each place."""
    rows, columns = ((1 - ((GRID - x[:, None]) / radius) ** 2).clamp(min=0) for x in places.unbind(1))
    return rows[:, :, None] * columns[:, None, :]


def centres(images):
    """(N,H,W) -> centres of mass (N,2), masses (N,1)."""
    mass = images.sum((1, 2))[:, None]
    moments = torch.stack([(images.sum(2) * GRID).sum(1), (images.sum(1) * GRID).sum(1)], dim=1)
    return moments / mass.clamp(min=1e-6), mass


def follow(clips):
    """Follows the dot in the start marker by its momentum; whether it ends at the goal: labels (N,)."""
    dots = clips[:, :, 0]
    start, _ = centres(clips[:, 0, 1])
    place, _ = centres(dots[:, 0] * window(start, 2.0))
    velocity = torch.zeros_like(place)
    for t in range(1, clips.size(1)):
        guess = place + velocity
        velocity = torch.where((guess < 0) | (guess > 31), -velocity, velocity)
        guess = 31 - (guess.remainder(62) - 31).abs()  # reflected, as paths are
        seen = guess
        for radius in (3.0 if clips.size(1) < 32 else 2.0, 1.5):  # in short clips dots are faster
            centre, mass = centres(dots[:, t] * window(seen, radius))
            seen = torch.where(mass > 0.1, centre, seen)
        gain = 1.0 if t < 3 else 0.5
        place, velocity = guess + gain * (seen - guess), velocity + gain * (seen - guess)
    goal, _ = centres(clips[:, -1, 2])
    return ((place - goal).norm(dim=1) < 2.5).long()


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize(
    ("least", "options"),
    [
        (0.85, dict(frames=8, distractors=1, wander=1.0)),
        (0.85, dict(frames=16, distractors=1)),
        (0.82, dict(frames=32)),
        (0.70, dict(frames=64, distractors=9, reach=13.5)),
    ],
    ids=str,
)
def test_a_tracker_tells_the_class(least, options, order):
    """Not always: paths that touch are sometimes taken for each other. 0.75 to 0.94 were measured."""
    assert accuracy(follow, PathTracker(200, order=order, **options)) > least


def test_a_tracker_fails_when_the_frames_between_are_shuffled():
    items = PathTracker(400)
    clips, labels = clips_and_labels(items)
    between = 1 + torch.randperm(30, generator=torch.Generator().manual_seed(0))
    clips[:, 1:-1] = clips[:, between]
    right = (follow(clips) == labels).double().mean().item()
    assert abs(right - 0.5) < 3 * (0.25 / 400) ** 0.5


def test_markers():
    """On a dot's start in the first frame and on a dot's end in the last, and in no other."""
    clips, _ = clips_and_labels(PathTracker(50))
    assert not clips[:, 1:, 1].any() and not clips[:, :-1, 2].any()
    for frame, channel in ((0, 1), (-1, 2)):
        marker = clips[:, frame, channel]
        assert (marker.sum((1, 2)) == 9).all()
        centre, _ = centres(marker)
        _, mass = centres(clips[:, frame, 0] * (marker > 0))
        assert (mass > 0.99).all()  # all of a dot lies in it
        assert ((centre >= 1) & (centre <= 30)).all()


# One frame at a time.


def statistics(frames):
    """(n,C,H,W) -> (n,F): what a frame shows of brightness, place and texture, in every channel."""
    H, W = frames.shape[-2:]
    blocks = F.avg_pool2d(frames, (H // 4, W // 4)).flatten(1)
    spectra = torch.fft.fft2(frames.flatten(0, 1))
    texture = torch.fft.ifft2(spectra.abs() ** 2).real.unflatten(0, frames.shape[:2])
    near = texture.roll((4, 4), (-2, -1))[..., :9, :5].flatten(1)  # autocorrelation up to 4 pixels away
    return torch.cat([blocks, near, frames.amax((-2, -1))], dim=1).double()


def largest_difference(values, labels):
    """Between the means of any two classes, in standard errors: values (n,F), or (n,frames,F) of clips, whose
    frames are not independent and are averaged first."""
    values = values.mean(1) if values.dim() == 3 else values
    groups = [values[labels == label] for label in labels.unique()]
    means = [group.mean(0) for group in groups]
    variances = [group.var(0) / len(group) for group in groups]
    return max(
        ((means[a] - means[b]).abs() / (variances[a] + variances[b]).sqrt().clamp(min=1e-9)).max().item()
        for a, b in itertools.combinations(range(len(groups)), 2)
    )


NOISE = 4.8  # of some 2,000 differences of equal means, one of several hundred draws has one this large


@pytest.mark.parametrize("t", [0, 4, 9])
def test_one_frame_of_dots_is_the_same_in_every_class(t):
    clips, labels = clips_and_labels(LimitedLifetimeDots(1600))
    assert largest_difference(statistics(clips[:, t]), labels) < NOISE
    if t < 9:  # the test can tell: two frames on one image show the motion
        both = clips[:, t].maximum(clips[:, t + 1])
        assert largest_difference(statistics(both), labels) > 3 * NOISE


@pytest.mark.parametrize("t", [0, 16, 31])
def test_one_frame_of_paths_is_the_same_in_both_classes(t):
    clips, labels = clips_and_labels(PathTracker(1600))
    assert largest_difference(statistics(clips[:, t]), labels) < NOISE


def test_dots_without_markers_move_alike_in_both_classes():
    """The exchange of ends makes them no faster."""
    clips, labels = clips_and_labels(PathTracker(1000, frames=16, wander=1.0))
    change = (clips[:, 8] - clips[:, 7]).abs()[:, :1]
    assert largest_difference(torch.cat([change.sum((2, 3)), statistics(change)], dim=1), labels) < NOISE


def test_both_ends_of_paths_are_the_same_in_both_classes():
    """How far the goal is from the start tells nothing; the dots between do."""
    clips, labels = clips_and_labels(PathTracker(1600, reach=13.5, wander=2.0))
    start, goal = centres(clips[:, 0, 1])[0], centres(clips[:, -1, 2])[0]
    ends = torch.cat([start - goal, (start - goal).norm(dim=1, keepdim=True), start * goal], dim=1)
    assert largest_difference(ends.double(), labels) < NOISE
    # The test can tell: half way, the dot that is asked for is often half way between them.
    _, mass = centres(clips[:, 16, 0] * window((start + goal) / 2, 6.0))
    assert largest_difference(mass.double(), labels) > 2 * NOISE


def test_markers_before_the_ends():
    """Drills: on the dots, so many frames apart; close in time is close in place, with that dot."""
    items = PathTracker(400, frames=12, reach=5.0, wander=1.0, distractors=1, spans=(1, 5, 11))
    spans, far = [], []
    for clip, label in items:
        shown = [clip[:, channel].amax((1, 2)).nonzero().flatten().tolist() for channel in (1, 2)]
        (first,), (last,) = shown
        spans.append(last - first)
        ends = torch.stack(
            [centres(clip[frame, channel][None])[0][0] for frame, channel in ((first, 1), (last, 2))]
        )
        for frame, place in ((first, ends[0]), (last, ends[1])):
            _, mass = centres(clip[frame, 0][None] * window(place[None], 2.5))
            assert mass > 0.5  # a dot is there
        if last - first == 1:
            far.append(((ends[0] - ends[1]).norm().item(), label))
    assert set(spans) == {1, 5, 11}
    near, away = ([distance for distance, label in far if label == same] for same in (1, 0))
    assert max(near) < 4 and sum(away) / len(away) > 2 * sum(near) / len(near)
    whole = PathTracker(4, frames=12, spans=(11,))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole, PathTracker(4, frames=12), strict=True))


def test_frames_of_events_do_not_tell_which_came_first():
    clips, labels = clips_and_labels(EventOrder(800, gap=4))
    values = torch.stack([statistics(clips[:, t]) for t in range(clips.size(1))], dim=1)
    xx, xy, yx, yy = (labels == label for label in range(4))
    assert largest_difference(values[xy | yx], labels[xy | yx]) < NOISE
    # The test can tell: which sign it is, and which one is in the first half of a clip.
    assert largest_difference(values[xx | yy], labels[xx | yy]) > 1.5 * NOISE
    assert largest_difference(values[xy | yx, :14], labels[xy | yx]) > 1.5 * NOISE


# Arguments.


@each_task
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(length=0), ValueError, "length: expected at least 1, got 0"),
        (dict(length=2.0), TypeError, "length: expected an int, got float"),
        (dict(seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (dict(seed=None), TypeError, "seed: expected an int, got NoneType"),
        (dict(order="random"), ValueError, "order: expected one of 'forward', 'reversed', 'shuffled', got"),
        (dict(size=3), ValueError, "size: expected at least"),
    ],
    ids=str,
)
def test_wrong_arguments_of_all(task, options, error, message):
    with pytest.raises(error, match=message):
        task(**{"length": 1, **options})


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        (LimitedLifetimeDots, dict(frames=1), ValueError, "frames: expected at least 2, got 1"),
        (LimitedLifetimeDots, dict(dots=0), ValueError, "dots: expected at least 1, got 0"),
        (
            LimitedLifetimeDots,
            dict(speed=16),
            ValueError,
            "speed: expected at least 1 and at most 15, got 16",
        ),
        (LimitedLifetimeDots, dict(lifetime=1), ValueError, "lifetime: expected at least 2, got 1"),
        (
            LimitedLifetimeDots,
            dict(coherence=0.5),
            TypeError,
            "coherence: expected a pair of numbers, got 0.5",
        ),
        (
            LimitedLifetimeDots,
            dict(coherence=(0.9, 0.5)),
            ValueError,
            r"coherence\[1\]: expected at least 0.9",
        ),
        (LimitedLifetimeDots, dict(coherence=("a", 1)), TypeError, r"coherence\[0\]: expected a number"),
        (EventOrder, dict(gap=0), ValueError, "gap: expected at least 1, got 0"),
        (EventOrder, dict(pairs="some"), ValueError, "pairs: expected one of 'all', 'mixed', got 'some'"),
        (EventGap, dict(gaps=()), ValueError, r"gaps: expected at least one sizes, got \(\)"),
        (EventGap, dict(gaps=8), TypeError, "gaps: expected a sequence of ints, got 8"),
        (EventGap, dict(frames=29), ValueError, "frames: expected at least 30, got 29"),
        (EventGap, dict(starts=0), ValueError, "starts: expected at least 1, got 0"),
        (PathTracker, dict(spans=(0,)), ValueError, "spans: expected sizes of at least 1, got"),
        (PathTracker, dict(spans=(32,)), ValueError, "spans: expected numbers below frames=32, got"),
        (EventOrder, dict(noise=2), ValueError, "noise: expected at least 0 and at most 1, got 2"),
        (PathTracker, dict(frames=1), ValueError, "frames: expected at least 2, got 1"),
        (
            PathTracker,
            dict(distractors=0),
            ValueError,
            "distractors: expected at least 1 and at most 11, got 0",
        ),
        (PathTracker, dict(distractors=12), ValueError, "and at most 11, got 12"),
        (PathTracker, dict(reach=3), ValueError, "reach: expected at least 4.0 and at most 13.5, got 3"),
        (PathTracker, dict(reach=14), ValueError, "reach: expected at least 4.0 and at most 13.5, got 14"),
        (PathTracker, dict(reach="far"), TypeError, "reach: expected a number, got str"),
        (PathTracker, dict(wander=-1), ValueError, "wander: expected at least 0 and at most 32, got -1"),
    ],
    ids=str,
)
def test_wrong_arguments(task, options, error, message):
    with pytest.raises(error, match=message):
        task(1, **options)


@pytest.mark.parametrize("reach", [4.0, 13.5])
def test_the_most_distractors_find_places(reach):
    for clip, _ in PathTracker(8, distractors=11, reach=reach):
        assert clip[0, 0].sum() == pytest.approx(12)


def test_coherence_is_uniform_in_its_range():
    items = LimitedLifetimeDots(64, frames=2, dots=40, size=64, lifetime=100, coherence=(0.0, 1.0))
    shares = []
    for clip, label in items:
        moved = clip[0].roll([2 * step for step in items.STEPS[label]], (-2, -1))
        shares.append(((clip[1] * moved).sum() / clip[0].sum()).item())
    assert min(shares) < 0.2 and max(shares) > 0.8 and abs(sum(shares) / 64 - 0.5) < 0.12


def test_seed_and_index_are_not_run_together():
    draws = {
        (s, i): torch.rand((), generator=generator_of(s, i)).item() for s, i in ((1, 12), (11, 2), (112, 0))
    }
    assert len(set(draws.values())) == 3


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_noise_is_as_bright_as_is_said(noise):
    clip, _ = EventOrder(1, noise=noise)[0]
    assert (clip == 1).sum() == 4 * 13 and clip[clip < 1].max() == pytest.approx(noise, abs=0.01)
