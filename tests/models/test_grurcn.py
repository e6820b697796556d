"""GRURCN against its equations written out, step by step."""

import copy

import pytest
import torch
from torch.nn import functional as F

import convgru_fused
from convgru_fused.eager import VARIANTS
from convgru_fused.models import GRURCN, VGG, ConvLSTM
from convgru_fused.testing import assert_close_to_reference


def tiny(**options):
    """Maps of 8x8, 4x4, 2x2 and 1x1 pixels."""
    backbone = VGG(
        ((3,), (4,), (5,)), (6,), 2, in_channels=2, pool_size=1, layers=("pool1", "pool2", "pool3", "fc4")
    )
    defaults = dict(backbone=backbone, frame_shape=(2, 16, 16), hidden_sizes=(3, 4, 5, 6), dropout=0.0)
    return GRURCN(3, **{**defaults, **options}).double()


def clip(T=4, N=2):
    return torch.randn(N, T, 2, 16, 16, dtype=torch.float64)


def conv(x, w):
    return F.conv2d(x, w, padding=w.size(-1) // 2)


def written_out(model, maps, stacked):
    """The last state of every layer, time step by time step, from the bottom layer to the top one in each;
    equations of Ballas et al. with the maximum as the reduction."""
    N, T = maps[0].shape[:2]
    h = [x.new_zeros(N, K, *x.shape[-2:]) for x, K in zip(maps, model.hidden_sizes, strict=True)]
    for t in range(T):
        for layer, recurrence in enumerate(model.recurrences):
            x = maps[layer][:, t]
            w_r, w_z, w = recurrence.weight_ih_l0.chunk(3)
            u_r, u_z, u = recurrence.weight_hh_l0.chunk(3)
            below_r = below_z = 0.0
            if stacked and layer:
                kernel = h[layer - 1].size(-1) // x.size(-1)
                pooled = F.max_pool2d(h[layer - 1], kernel)  # of this time step
                v_r, v_z = model.from_below[layer - 1].weight.chunk(2)
                below_r, below_z = conv(pooled, v_r), conv(pooled, v_z)
            r = torch.sigmoid(conv(x, w_r) + below_r + conv(h[layer], u_r))
            z = torch.sigmoid(conv(x, w_z) + below_z + conv(h[layer], u_z))
            c = torch.tanh(conv(x, w) + conv(r * h[layer], u))
            h[layer] = (1 - z) * h[layer] + z * c
    return h


@pytest.mark.parametrize("stacked", [False, True], ids=["plain", "stacked"])
def test_states_are_those_of_the_equations(backend, stacked):
    model, x = tiny(stacked=stacked), clip()
    maps = model.maps(x)
    expected = written_out(model, maps, stacked)
    for state, reference in zip(model.last_states(maps), expected, strict=True):
        assert_close_to_reference(state, reference)


def test_stacked_differs_from_plain_in_all_layers_but_the_first(backend):
    plain, stacked = tiny(), tiny(stacked=True)
    stacked.load_state_dict(plain.state_dict(), strict=False)
    maps = plain.maps(clip())
    pairs = list(zip(plain.last_states(maps), stacked.last_states(maps), strict=True))
    assert torch.equal(*pairs[0])
    assert not any(torch.allclose(a, b) for a, b in pairs[1:])


def test_the_layer_below_enters_at_the_same_time_step(backend):
    """The last frame of a map alone changes the last state of the layer above it."""
    model = tiny(stacked=True)
    maps = [x.detach() for x in model.maps(clip())]
    before = model.last_states(maps)
    maps[1] = maps[1].clone()
    maps[1][:, -1] += 10 * torch.randn_like(maps[1][:, -1])
    changed = [not torch.equal(a, b) for a, b in zip(before, model.last_states(maps), strict=True)]
    assert changed == [False, True, True, True]


def test_bidirectional_is_two_recurrences_with_their_own_weights(backend):
    """Forward states first, then those of the frames read backwards."""
    model, x = tiny(bidirectional=True), clip()
    one = tiny()
    maps = model.maps(x)
    halves = []
    for suffix, order in (("", [0, 1, 2, 3]), ("_reverse", [3, 2, 1, 0])):
        state = {
            name.removesuffix(suffix): value
            for name, value in model.recurrences.state_dict().items()
            if name.endswith("_reverse") == bool(suffix)
        }
        one.recurrences.load_state_dict(state)
        halves.append(one.last_states([m[:, order] for m in maps]))
    for state, *parts in zip(model.last_states(maps), *halves, strict=True):
        assert_close_to_reference(state, torch.cat(parts, dim=1))


def test_scores_are_the_mean_of_each_layers_probabilities(backend):
    model, x = tiny(), clip()
    layers = model.layer_scores(x)
    assert layers.shape == (2, 4, 3) and model.layer_names == ("pool1", "pool2", "pool3", "fc4")
    for index, state in enumerate(model.last_states(model.maps(x))):
        logits = model.classifiers[index].linear(state.mean((2, 3)))
        torch.testing.assert_close(layers[:, index].exp(), logits.softmax(-1))
    torch.testing.assert_close(model(x).exp(), layers.exp().mean(1))
    assert not torch.allclose(model(x), layers.mean(1))  # which is not the mean of logarithms


@pytest.mark.parametrize("Model", [GRURCN, ConvLSTM])
def test_the_mean_of_log_probabilities_trains_each_classifier_alone(Model):
    model = Model.small(3, average="log_probabilities")
    clips, labels = torch.rand(2, 4, 1, 32, 32), torch.tensor([0, 2])
    layers = model.layer_scores(clips)
    torch.testing.assert_close(model(clips), layers.mean(1))
    losses = [F.nll_loss(layers[:, layer], labels) for layer in range(layers.size(1))]
    loss = F.nll_loss(model(clips), labels)
    torch.testing.assert_close(loss, sum(losses) / len(losses))
    parameters = list(model.classifiers[1].parameters())  # of which only the second loss knows
    own = torch.autograd.grad(losses[1] / len(losses), parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), own)


def test_dropout_is_on_the_input_of_the_classifiers():
    model, x = tiny(dropout=0.7), clip()
    first, second = model.layer_scores(x), model.layer_scores(x)
    assert not any(torch.allclose(first[:, layer], second[:, layer]) for layer in range(4))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("options", [{}, {"stacked": True}, {"bidirectional": True}], ids=str)
def test_backends_agree(options):
    """Scores and every gradient, on the eager backend and on the one that is chosen."""
    model, x = tiny(**options), clip()
    twin = copy.deepcopy(model)
    results = []
    for network, name in ((model, "eager"), (twin, "cpu")):
        with convgru_fused.use_backend(name):
            scores = network(x)
            F.nll_loss(scores, torch.tensor([0, 2])).backward()
        results.append([scores.detach(), *(p.grad for p in network.parameters() if p.requires_grad)])
    assert all(gradient is not None and gradient.any() for gradient in results[0])
    for ours, reference in zip(results[1], results[0], strict=True):
        assert_close_to_reference(ours, reference)


def test_parameters_that_no_map_depends_on_do_not_require_gradients():
    """The VGG's last layer; DistributedDataParallel would wait for it."""
    model = tiny()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.classifier.3.weight", "backbone.classifier.3.bias"}


def test_a_map_of_one_pixel_has_a_1x1_kernel():
    assert tiny().kernel_sizes == (3, 3, 3, 1)
    assert tiny(kernel_size=5).kernel_sizes == (5, 5, 5, 1)
    assert tiny(bias=True).recurrences[0].bias and not tiny().recurrences[0].bias


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_memory(variant, bidirectional):
    """Where nothing comes in, a state loses an eighth a step."""
    model = tiny(variant=variant, bidirectional=bidirectional, bias=True, memory=8)
    recurrence = model.recurrences[1]
    with torch.no_grad():
        for name, parameter in recurrence.named_parameters():
            if "weight" in name:
                parameter.zero_()
            elif "bias" in name:
                parameter.chunk(3)[2].zero_()
    D = 2 if bidirectional else 1
    states = torch.ones(D, 1, 4, 4, 4, dtype=torch.float64)
    _, last = recurrence(torch.zeros(1, 5, 4, 4, 4, dtype=torch.float64), states)
    torch.testing.assert_close(last, states * (7 / 8) ** 5)


def test_small_learns_the_order_of_two_frames(backend):
    model = GRURCN.small(2)
    frames = torch.randn(2, 1, 1, 32, 32)
    x = torch.stack([torch.cat([*frames]), torch.cat([*frames.flip(0)])])  # the two orders
    labels = torch.tensor([0, 1])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.nll_loss(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # log 2 = 0.69 to start with
    # The layers' own scores show what the average hides.
    assert model.layer_scores(x).argmax(-1).T.tolist()[:3] == [[0, 1]] * 3


@pytest.mark.parametrize("options", [{}, {"stacked": True}, {"bidirectional": True}], ids=str)
def test_compiles_to_one_graph(options):
    model, x = tiny(**options), clip()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close_to_reference(compiled(x), model(x))
