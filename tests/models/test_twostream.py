"""Two streams: order of the flow channels, subtraction of means, fusion by average and by a linear SVM."""

import builtins
import sys

import pytest
import torch
from torch import nn

from convgru_fused.models import GRURCN, FlowStack, SVMFusion, TwoStream, mean_log_probabilities


class Record(nn.Module):
    """Keeps the images that it gets."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images):
        self.images = images
        return images.flatten(1)[:, : self.num_classes]


def test_flow_channels_are_dx_dy_of_each_frame_in_turn():
    network = Record()
    flow = torch.arange(2.0 * 3 * 2).view(2, 3, 2, 1, 1).expand(2, 3, 2, 4, 5)
    FlowStack(2, network, (2, 4, 5), 3, subtract_mean=False)(flow)
    assert network.images.shape == (2, 6, 4, 5)
    assert network.images[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]  # dx0, dy0, dx1, dy1, ...


def test_the_mean_of_each_field_is_subtracted():
    network, flow = Record(), torch.randn(2, 3, 2, 4, 5)
    model = FlowStack(2, network, (2, 4, 5), 3)
    model(flow)
    images = network.images
    torch.testing.assert_close(images.mean((-2, -1)), torch.zeros(2, 6), atol=1e-6, rtol=0)
    camera = torch.randn(2, 3, 2, 1, 1)  # moves every pixel of a field alike
    model(flow + camera)
    torch.testing.assert_close(network.images, images)


def test_average_of_probabilities():
    model = TwoStream.small(4)
    x, flow = torch.randn(2, 11, 1, 32, 32), torch.randn(2, 10, 2, 32, 32)
    streams = model.stream_scores(x, flow)
    torch.testing.assert_close(streams[:, 0], model.spatial(x))
    torch.testing.assert_close(streams[:, 1], model.temporal(flow))
    torch.testing.assert_close(model(x, flow).exp(), streams.exp().mean(1))
    model(x, flow)[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("weight", [0, 0.25, 2 / 3, 1])
def test_weighted_average(weight):
    model = TwoStream.small(4, flow_weight=weight)
    x, flow = torch.randn(2, 11, 1, 32, 32), torch.randn(2, 10, 2, 32, 32)
    spatial, temporal = model.stream_scores(x, flow).exp().unbind(1)
    scores = model(x, flow)
    torch.testing.assert_close(scores.exp(), (1 - weight) * spatial + weight * temporal)
    scores[:, 0].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_stride_of_the_flow():
    windows = TwoStream.small(4, flow_stride=10).temporal.windows(
        torch.arange(29.0).view(1, 29, 1, 1, 1).expand(1, 29, 2, 32, 32)
    )
    assert windows[0, :, 0, 0, 0, 0].tolist() == [0, 10, 20]
    assert TwoStream(4, flow_stride=7).temporal.stride == 7


@pytest.mark.parametrize("weight", [0, 0.25, 1])
def test_average_of_log_probabilities(weight):
    model = TwoStream.small(4, flow_weight=weight, average="log_probabilities")
    assert model.spatial.average == model.temporal.average == "log_probabilities"
    x, flow = torch.randn(2, 11, 1, 32, 32), torch.randn(2, 10, 2, 32, 32)
    spatial, temporal = model.stream_scores(x, flow).unbind(1)
    torch.testing.assert_close(model(x, flow), (1 - weight) * spatial + weight * temporal)


def test_mean_log_probabilities():
    scores = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log()
    torch.testing.assert_close(mean_log_probabilities(scores, 0).exp(), torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(mean_log_probabilities(scores, 0, (3, 1)).exp(), torch.tensor([0.4, 0.6]))
    large = torch.full((2, 3), -1e4)  # whose probabilities are no floats
    torch.testing.assert_close(mean_log_probabilities(large, 0), torch.full((3,), -1e4))
    for weights in [(1,), (1, -1), (0, 0), (1, float("inf")), (1, float("nan"))]:
        with pytest.raises(ValueError, match="weights: expected 2 of at least 0 and a sum above 0, got"):
            mean_log_probabilities(scores, 0, weights)


def test_streams_may_be_other_models():
    rcn = GRURCN.small(4)
    model = TwoStream.small(4, spatial=rcn, temporal=GRURCN.small(4, frame_shape=(2, 32, 32)))
    assert model.spatial is rcn
    assert model(torch.randn(2, 3, 1, 32, 32), torch.randn(2, 2, 2, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("clip", "flow", "error", "message"),
    [
        ((2, 3, 1, 32, 32), (1, 9, 2, 32, 32), ValueError, "flow: expected N=2 as the clip has, got 1"),
        ((2, 3, 1, 32, 32), (2, 9, 3, 32, 32), ValueError, r"flow: expected \(N,T,2,32,32\), got shape"),
        ((2, 3, 1, 32, 32), (2, 8, 2, 32, 32), ValueError, "at least 9 frames, got 8"),
        ((2, 3, 2, 32, 32), (2, 9, 2, 32, 32), ValueError, r"clip: expected \(N,T,1,32,32\), got shape"),
    ],
)
def test_wrong_input(clip, flow, error, message):
    with pytest.raises(error, match=message):
        TwoStream.small(4)(torch.zeros(clip), torch.zeros(flow))


class TestSVM:
    def scores(self, N=90):
        """Streams that know a part of three classes each, so that neither suffices."""
        labels = torch.arange(N) % 3
        logits = 0.3 * torch.randn(N, 2, 3)
        logits[:, 0, 0] += 4.0 * (labels == 0)
        logits[:, 1, 1] += 4.0 * (labels == 1)
        return logits.log_softmax(-1), labels

    def test_joins_what_the_streams_know(self):
        train, labels = self.scores()
        test, expected = self.scores()
        svm = SVMFusion().fit(train, labels)
        assert (svm.predict(test) == expected).float().mean() > 0.95
        assert svm.predict(test).dtype == torch.int64

    def test_each_stream_has_length_one(self):
        features = torch.from_numpy(SVMFusion._features(self.scores()[0]))
        assert features.shape == (90, 6)
        torch.testing.assert_close(features.unflatten(1, (2, 3)).norm(dim=-1), torch.ones(90, 2).double())

    def test_a_small_C_regularises(self):
        scores, labels = self.scores()
        little, much = (SVMFusion(C).fit(scores, labels)._svm for C in (10.0, 0.01))
        assert abs(much.coef_).sum() < 0.5 * abs(little.coef_).sum()

    def test_wrong_input(self):
        scores, labels = self.scores()
        svm = SVMFusion()
        with pytest.raises(ValueError, match="scores: expected fit to be called before predict"):
            svm.predict(scores)
        with pytest.raises(ValueError, match=r"labels: expected \(90,\) with at least two different, got"):
            svm.fit(scores, labels[:4])
        with pytest.raises(ValueError, match=r"labels: expected .* 1 different"):
            svm.fit(scores, torch.zeros(90))
        with pytest.raises(ValueError, match=r"scores: expected \(N,streams,num_classes\), got shape"):
            svm.fit(scores[0], labels)
        svm.fit(scores, labels)
        with pytest.raises(ValueError, match=r"scores: expected \(N,2,3\), got \(90, 1, 3\)"):
            svm.predict(scores[:, :1])
        with pytest.raises(ValueError, match="C: expected a number above 0, got 0"):
            SVMFusion(C=0)

    def test_without_scikit_learn_it_says_how_to_get_it(self, monkeypatch):
        real = builtins.__import__

        def missing(name, *args, **kwargs):
            if name.startswith("sklearn"):
                raise ModuleNotFoundError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)
        for name in [name for name in sys.modules if name.startswith("sklearn")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ModuleNotFoundError, match=r"pip install convgru_fused\[models\]"):
            SVMFusion()
