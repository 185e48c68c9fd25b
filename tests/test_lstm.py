"""The layer-norm LSTM against a plain cell written with torch's own layers, and the state it carries."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from odist.models.lstm import EPSILON, LSTM, LayerNormLSTM, LayerNormLSTMFunction

STEPS, BATCH, WIDTH, SIZE = 7, 3, 5, 6
NAMES = ("weight_input", "weight_hidden", "gain_input", "gain_hidden", "bias", "gain_cell", "bias_cell")


def layer(dtype=torch.float64) -> LayerNormLSTM:
    """A layer whose gains and biases are not where they start."""
    torch.manual_seed(1)
    made = LayerNormLSTM(WIDTH, SIZE).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def plain(made: LayerNormLSTM, inputs, hidden, cell):
    """Ba et al. 2016, equations 20 to 22, one step after the other: candidate, forget, input, output."""
    outputs = []
    for step in inputs:
        from_input = F.layer_norm(step @ made.weight_input.T, (4 * SIZE,), made.gain_input, None, EPSILON)
        from_hidden = F.layer_norm(hidden @ made.weight_hidden.T, (4 * SIZE,), made.gain_hidden, None, EPSILON)
        candidate, forget, enter, leave = (from_input + from_hidden + made.bias).chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * F.layer_norm(cell, (SIZE,), made.gain_cell, made.bias_cell, EPSILON).tanh()
        outputs.append(hidden)
    return torch.stack(outputs), cell


def arguments(made: LayerNormLSTM):
    torch.manual_seed(2)
    inputs, hidden, cell = torch.randn(STEPS, BATCH, WIDTH), torch.randn(BATCH, SIZE), torch.randn(BATCH, SIZE)
    kind = made.bias.dtype
    return [tensor.to(kind).requires_grad_() for tensor in (inputs, hidden, cell)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_outputs_and_all_gradients_equal_the_plain_cells(dtype, tolerance):
    made = layer(dtype)
    own = arguments(made)
    outputs, cell = LayerNormLSTMFunction.apply(*own, *(getattr(made, name) for name in NAMES))
    expected, expected_cell = plain(made, *own)
    torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(cell, expected_cell, rtol=tolerance, atol=tolerance)
    wanted = [*own, *made.parameters()]
    weights, cell_weights = torch.randn_like(outputs), torch.randn_like(cell)
    found = torch.autograd.grad((outputs * weights).sum() + (cell * cell_weights).sum(), wanted)
    right = torch.autograd.grad((expected * weights).sum() + (expected_cell * cell_weights).sum(), wanted)
    for gradient, reference in zip(found, right, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=10 * tolerance, atol=10 * tolerance)


def test_products_of_a_lower_type_change_no_more_than_its_rounding():
    made, made_low = layer(), layer()
    found = []
    for one, low in ((made, None), (made_low, torch.float32)):
        own = arguments(one)
        outputs, cell = LayerNormLSTMFunction.apply(*own, *(getattr(one, name) for name in NAMES), low)
        torch.manual_seed(3)
        loss = (outputs * torch.randn_like(outputs)).sum() + (cell * torch.randn_like(cell)).sum()
        found.append([outputs, cell, *torch.autograd.grad(loss, [*own, *one.parameters()])])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float64
        torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-5)
        assert not torch.equal(rounded, exact)


def test_gradients_are_those_of_finite_differences():
    torch.set_num_threads(1)
    made = layer()
    own = [tensor[:3] if number == 0 else tensor for number, tensor in enumerate(arguments(made))]
    leaves = [tensor.detach().requires_grad_() for tensor in (*own, *(getattr(made, name) for name in NAMES))]
    assert torch.autograd.gradcheck(LayerNormLSTMFunction.apply, leaves)


def model() -> LSTM:
    torch.manual_seed(4)
    return LSTM(11, embedding_dim=WIDTH, hidden=[SIZE, 8])


def test_two_batches_with_the_carry_are_one_long_unroll():
    net = model()
    tokens = torch.randint(11, (BATCH, 2 * STEPS))
    whole, end = net(tokens)
    first, carry = net(tokens[:, :STEPS])
    second, last = net(tokens[:, STEPS:], carry)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    for own, other in zip(last, end, strict=True):
        torch.testing.assert_close(own, other)
    again, _ = net(tokens[:, STEPS:])
    assert not torch.allclose(again, second)  # the state matters


def test_the_carry_has_no_gradient_and_is_no_part_of_the_graph():
    net = model()
    logits, carry = net(torch.randint(11, (BATCH, STEPS)))
    assert [tuple(state.shape) for state in carry] == [(2, BATCH, SIZE), (2, BATCH, 8)]
    assert not any(state.requires_grad for state in carry)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_training_starts_at_the_uniform_prediction():
    torch.manual_seed(0)
    net = LSTM(500, embedding_dim=32, hidden=[64, 64])
    tokens = torch.randint(500, (8, 33))
    logits, _ = net(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(500)) < 0.02
