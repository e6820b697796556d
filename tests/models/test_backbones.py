"""Frame CNNs: maps by name, of the package's VGG and of any other network."""

import copy
import pickle

import pytest
import torch
from torch import nn

from convgru_fused.models import GRURCN, LRCN, VGG, VGG16, FrameClassifier, NamedLayers, SingleFrame
from convgru_fused.models.backbones import adopt


class Skip(nn.Module):
    """A network that is no chain: children run in another order than they are registered, and one twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        self.first = nn.Conv2d(1, 4, 3, 2, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        x = self.first(images)
        x = x + self.second(self.second(x))
        return self.head(x.mean((-2, -1)))


def test_named_layers():
    network, images = Skip().eval(), torch.randn(3, 1, 8, 8)
    maps = NamedLayers(network, ("second", "first", "head"))(images)
    first = network.first(images)
    assert list(maps) == ["second", "first", "head"]
    assert torch.equal(maps["first"], first)
    assert torch.equal(maps["second"], network.second(network.second(first)))  # the last call
    assert torch.equal(maps["head"], network(images)[..., None, None])


def test_named_layers_leave_the_network_as_it_was():
    network = Skip()
    layers = NamedLayers(network, ("first",))
    layers(torch.randn(3, 1, 8, 8))
    assert not any(m._forward_hooks for m in network.modules())
    with pytest.raises(RuntimeError):
        layers(torch.randn(3, 2, 8, 8))  # wrong channels: an error in the middle
    assert not any(m._forward_hooks for m in network.modules())


def test_named_layers_are_copied_and_pickled():
    layers = NamedLayers(Skip().eval(), ("first",))
    x = torch.randn(3, 1, 8, 8)
    for twin in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        with torch.no_grad():
            twin.network.first.weight.add_(1)
        assert not torch.allclose(twin(x)["first"], layers(x)["first"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NamedLayers(3, ("a",)), TypeError, "network: expected a torch.nn.Module, got int"),
        (
            lambda: NamedLayers(Skip(), "first"),
            TypeError,
            "layers: expected a sequence of names, got 'first'",
        ),
        (lambda: NamedLayers(Skip(), ("first", 3)), TypeError, "layers: expected a sequence of names"),
        (lambda: NamedLayers(Skip(), ()), ValueError, "layers: expected at least one name"),
        (lambda: NamedLayers(Skip(), ("first", "first")), ValueError, "none twice"),
        (lambda: NamedLayers(Skip(), ("third",)), ValueError, r"submodules .*first.*, got 'third'"),
        (lambda: adopt(NamedLayers(Skip(), ("unused",)), (1, 8, 8)), ValueError, "'unused' to give"),
    ],
)
def test_wrong_layers(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_adopt_gives_shapes_and_frees_what_is_not_read():
    network = Skip()
    layers = NamedLayers(network, ("second",))
    state = copy.deepcopy(network.state_dict())
    assert adopt(layers, (1, 8, 8)) == {"second": (4, 4, 4)}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"head.weight", "head.bias", "unused.weight", "unused.bias"}
    # Nothing was computed: batch normalisation has seen no batch.
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_adopt_leaves_frozen_networks_frozen():
    network = Skip().requires_grad_(False)
    adopt(NamedLayers(network, ("second",)), (1, 8, 8))
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        (None, TypeError, "backbone: expected a torch.nn.Module, got NoneType"),
        (nn.Flatten(), TypeError, "backbone: expected maps by name .*, got Tensor"),
        (
            nn.Conv2d(3, 4, 3),
            ValueError,
            r"backbone: expected a network for frames of shape \(1, 8, 8\), got",
        ),
    ],
)
def test_wrong_backbones(backbone, error, message):
    with pytest.raises(error, match=message):
        adopt(backbone, (1, 8, 8))


def test_a_model_of_one_map_refuses_two():
    backbone = NamedLayers(Skip(), ("first", "second"))
    for make in (LRCN, lambda n, **k: FrameClassifier(num_classes=n, **k)):
        with pytest.raises(ValueError, match="backbone: expected .* one map, got first, second"):
            make(3, backbone=backbone, frame_shape=(1, 8, 8))


def test_vgg_maps_in_the_order_asked_for():
    """And nothing past the last is computed."""
    names = ("pool3", "pool1", "fc4")
    vgg = VGG(((2, 3), (4,), (5,)), (6, 7), 8, in_channels=1, pool_size=2, dropout=0.0, layers=names)
    images = torch.randn(3, 1, 16, 16)
    maps = vgg(images)
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "pool3": (3, 5, 2, 2),
        "pool1": (3, 3, 8, 8),
        "fc4": (3, 6, 1, 1),
    }
    assert list(maps) == list(names)
    x = images
    for layer in vgg.features:
        x = layer(x)
    assert torch.equal(maps["pool3"], x)
    assert torch.equal(maps["fc4"].flatten(1), vgg.classifier[0](x.flatten(1)).relu())
    vgg.layers = ("pool1",)
    vgg.classifier = vgg.avgpool = None  # would fail if they were called
    assert list(vgg(images)) == ["pool1"]


def test_vgg_16_has_the_state_dict_of_torchvision(torchvision_models):
    with torch.device("meta"):
        ours, theirs = VGG16().state_dict(), torchvision_models.vgg16().state_dict()
    assert sum(value.numel() for value in ours.values()) == 138_357_544
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_vgg_has_the_layers_of_torchvision(torchvision_models):
    """The same convolutions and pools with the same weights give the same maps."""
    theirs = torchvision_models.vgg.make_layers([4, 5, "M", 6, "M"])
    ours = VGG(((4, 5), (6,)), (3,), 2, pool_size=4, layers=("pool2",))
    ours.features.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images)["pool2"], theirs(images))


def test_a_network_of_torchvision_as_backbone(torchvision_models):
    network = torchvision_models.resnet18(num_classes=10)
    backbone = NamedLayers(network, ("layer1", "layer3", "avgpool"))
    model = GRURCN(3, backbone=backbone, frame_shape=(3, 32, 32), hidden_sizes=(4, 5, 6))
    assert model.map_shapes == {"layer1": (64, 8, 8), "layer3": (256, 2, 2), "avgpool": (512, 1, 1)}
    assert not network.fc.weight.requires_grad and network.layer4[0].conv1.weight.requires_grad
    scores = model(torch.randn(2, 2, 3, 32, 32))
    scores[:, 0].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_frame_classifier():
    backbone = NamedLayers(Skip().eval(), ("second",))
    classifier = FrameClassifier(backbone, 5, (1, 8, 8), dropout=0.0)
    images = torch.randn(3, 1, 8, 8)
    expected = classifier.classifier.linear(backbone(images)["second"].mean((2, 3)))
    torch.testing.assert_close(classifier(images), expected)
    model = SingleFrame(5, frame_shape=(1, 8, 8), network=classifier)
    assert model(torch.randn(2, 4, 1, 8, 8)).shape == (2, 5)
