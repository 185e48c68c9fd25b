"""A layer-norm LSTM that carries its state from batch to batch: the paper's language model.

The recurrence is one autograd function with backpropagation through time written by hand: what does not
depend on the previous step (the input's product, the weights' gradients, the derivatives of the gates) is
computed for all steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odist.models.compilable import Compilable

EPSILON = 1e-5
INPUT_ONLY, AFFINE_ONLY, EVERYTHING = [True, False, False], [False, True, True], [True, True, True]

_norm = torch.ops.aten.native_layer_norm.default
_norm_backward = torch.ops.aten.native_layer_norm_backward.default


class LayerNormLSTMFunction(torch.autograd.Function):
    """One layer over a whole unroll.

    Source: Ba et al. 2016, equations 20 to 22; of the three biases that are added before the gates one is
    kept. The four blocks of 4H are candidate, forget, input and output gate: those that depend on the cell's
    gradient lie side by side, and so do those that are sigmoids.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight_input: Tensor,
        weight_hidden: Tensor,
        gain_input: Tensor,
        gain_hidden: Tensor,
        bias: Tensor,
        gain_cell: Tensor,
        bias_cell: Tensor,
        low: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [steps, batch, H] and the last cell [batch, H].

        inputs: [steps, batch, width]; hidden, cell: [batch, H]; weight_input: [4H, width]
        weight_hidden: [4H, H]; gain_input, gain_hidden, bias: [4H]; gain_cell, bias_cell: [H]
        low: type of the operands of matrix products, None for their own; all else keeps its type
        """
        steps, batch, _ = inputs.shape
        size = hidden.shape[1]
        from_input = _product(inputs.flatten(0, 1), weight_input.t(), low)
        gates, mean_input, rstd_input = _norm(from_input, [4 * size], gain_input, bias, EPSILON)
        gates = gates.view(steps, batch, 4 * size)
        from_hidden = torch.empty_like(gates)
        hiddens = inputs.new_empty(steps + 1, batch, size)
        cells, squashed = torch.empty_like(hiddens), inputs.new_empty(steps, batch, size)
        statistics: tuple[list[Tensor], ...] = ([], [], [], [])
        hiddens[0], cells[0] = hidden, cell
        transposed = weight_hidden.t() if low is None else weight_hidden.to(low).t()
        for step in range(steps):
            if low is None:
                torch.mm(hiddens[step], transposed, out=from_hidden[step])
            else:
                from_hidden[step] = hiddens[step].to(low).mm(transposed)
            normed, mean, rstd = _norm(from_hidden[step], [4 * size], gain_hidden, None, EPSILON)
            gate = gates[step].add_(normed)
            gate[:, :size].tanh_()
            gate[:, size:].sigmoid_()
            candidate, forget, enter, leave = gate.split(size, dim=1)
            torch.mul(forget, cells[step], out=cells[step + 1]).addcmul_(enter, candidate)
            normed, mean_cell, rstd_cell = _norm(cells[step + 1], [size], gain_cell, bias_cell, EPSILON)
            torch.tanh(normed, out=squashed[step])
            torch.mul(leave, squashed[step], out=hiddens[step + 1])
            for kept, value in zip(statistics, (mean, rstd, mean_cell, rstd_cell), strict=True):
                kept.append(value)
        ctx.low = low
        ctx.save_for_backward(
            *(inputs, weight_input, weight_hidden, gain_input, gain_hidden, bias, gain_cell, bias_cell),
            *(from_input, mean_input, rstd_input, from_hidden, gates, hiddens, cells, squashed),
            *(torch.stack(kept) for kept in statistics),
        )
        return hiddens[1:], cells[steps].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_hiddens: Tensor, grad_cell: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # in the order of `forward`
        inputs, weight_input, weight_hidden, gain_input, gain_hidden, bias, gain_cell, bias_cell = saved[:8]
        from_input, mean_input, rstd_input, from_hidden, gates, hiddens, cells, squashed = saved[8:16]
        mean, rstd, mean_cell, rstd_cell = saved[16:]
        steps, batch, size = squashed.shape
        low = ctx.low
        weight_back = weight_hidden if low is None else weight_hidden.to(low)
        slopes, slope_cell = _slopes(gates, cells, squashed)
        grad_gates, grad_hidden_product = torch.empty_like(gates), torch.empty_like(gates)
        grad_normed = torch.empty_like(squashed)
        hidden, carried = grad_hiddens[steps - 1], grad_cell
        for step in reversed(range(steps)):
            torch.mul(hidden, slope_cell[step], out=grad_normed[step])
            statistics = mean_cell[step], rstd_cell[step]
            through_norm, _, _ = _norm_backward(
                grad_normed[step], cells[step + 1], [size], *statistics, gain_cell, None, INPUT_ONLY
            )
            cell = through_norm.add_(carried)
            gate, slope = grad_gates[step].view(batch, 4, size), slopes[step].view(batch, 4, size)
            torch.mul(cell.unsqueeze(1), slope[:, :3], out=gate[:, :3])
            torch.mul(hidden, slope[:, 3], out=gate[:, 3])
            carried = cell.mul_(gates[step, :, size : 2 * size])
            product, _, _ = _norm_backward(
                grad_gates[step], from_hidden[step], [4 * size], mean[step], rstd[step], gain_hidden, None, INPUT_ONLY
            )
            grad_hidden_product[step] = product
            if step:
                if low is None:
                    hidden = torch.addmm(grad_hiddens[step - 1], product, weight_hidden)
                else:
                    hidden = grad_hiddens[step - 1] + product.to(low).mm(weight_back)
            elif ctx.needs_input_grad[1]:
                hidden = _product(product, weight_back, low)
        flat, flat_product = grad_gates.flatten(0, 1), grad_hidden_product.flatten(0, 1)
        statistics = mean.flatten(0, 1), rstd.flatten(0, 1)
        _, grad_gain_hidden, _ = _norm_backward(
            flat, from_hidden.flatten(0, 1), [4 * size], *statistics, gain_hidden, bias, AFFINE_ONLY
        )
        flat_normed, flat_cells = grad_normed.flatten(0, 1), cells[1:].flatten(0, 1)
        statistics = mean_cell.flatten(0, 1), rstd_cell.flatten(0, 1)
        _, grad_gain_cell, grad_bias_cell = _norm_backward(
            flat_normed, flat_cells, [size], *statistics, gain_cell, bias_cell, AFFINE_ONLY
        )
        grad_product, grad_gain_input, grad_bias = _norm_backward(
            flat, from_input, [4 * size], mean_input, rstd_input, gain_input, bias, EVERYTHING
        )
        return (
            _product(grad_product, weight_input, low).view_as(inputs) if ctx.needs_input_grad[0] else None,
            hidden if ctx.needs_input_grad[1] else None,
            carried if ctx.needs_input_grad[2] else None,
            _product(grad_product.t(), inputs.flatten(0, 1), low),
            _product(flat_product.t(), hiddens[:-1].flatten(0, 1), low),
            *(grad_gain_input, grad_gain_hidden, grad_bias, grad_gain_cell, grad_bias_cell),
            None,
        )


def _product(left: Tensor, right: Tensor, low: torch.dtype | None) -> Tensor:
    """The matrix product of operands rounded to `low`, in the type of `left`."""
    return left.mm(right) if low is None else left.to(low).mm(right.to(low)).to(left.dtype)


def _slopes(gates: Tensor, cells: Tensor, squashed: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the gradients of the cell (three gates) and of the hidden state (output gate, normed cell).

    Returns [steps, batch, 4H] and [steps, batch, H], for all steps at once.
    """
    size = squashed.shape[-1]
    candidate, forget, enter, leave = gates.split(size, dim=-1)
    slopes = torch.empty_like(gates)
    of_candidate, of_forget, of_enter, of_leave = slopes.split(size, dim=-1)
    torch.addcmul(enter, candidate * enter, candidate, value=-1, out=of_candidate)  # enter (1 - candidate^2)
    torch.mul(torch.addcmul(forget, forget, forget, value=-1), cells[:-1], out=of_forget)
    torch.mul(torch.addcmul(enter, enter, enter, value=-1), candidate, out=of_enter)
    torch.mul(torch.addcmul(leave, leave, leave, value=-1), squashed, out=of_leave)
    return slopes, torch.addcmul(leave, leave * squashed, squashed, value=-1)


class LayerNormLSTM(nn.Module):
    """One layer of the recurrence with its parameters.

    width: of the input; size: H
    Initialisation is our choice: weights uniform within 1/sqrt(fan-in) (their scale is normalised away), gains 1,
    biases 0 and 1 for the forget gate.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight_input = nn.Parameter(torch.empty(4 * size, width).uniform_(-(width**-0.5), width**-0.5))
        self.weight_hidden = nn.Parameter(torch.empty(4 * size, size).uniform_(-(size**-0.5), size**-0.5))
        self.gain_input = nn.Parameter(torch.ones(4 * size))
        self.gain_hidden = nn.Parameter(torch.ones(4 * size))
        self.bias = nn.Parameter(torch.zeros(4 * size))
        self.gain_cell = nn.Parameter(torch.ones(size))
        self.bias_cell = nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            self.bias[size : 2 * size] = 1.0

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [steps, batch, H] and the last state [2, batch, H] (hidden, cell), which has no gradient.

        inputs: [steps, batch, width]; state: [2, batch, H]
        """
        parameters = (self.weight_input, self.weight_hidden, self.gain_input, self.gain_hidden, self.bias)
        kind, own = inputs.device.type, self.gain_cell.dtype
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):
            hiddens, cell = LayerNormLSTMFunction.apply(
                inputs.to(own), *state.to(own), *parameters, self.gain_cell, self.bias_cell, low
            )
        return hiddens, torch.stack([hiddens[-1].detach(), cell.detach()])


class LSTM(Compilable):
    """Language model: embedding, layer-norm LSTM layers, one softmax over the vocabulary.

    vocabulary: number of tokens; embedding_dim: width of the embedding; hidden: units of each layer
    dropout: probability on the input of every layer and of the softmax; compile: by torch.compile
    Source: Anil et al. 2018, section 3.1 (embedding 256, 2 layers of 1024, layer norm); embedding and softmax are
    untied. Initialisation is our choice: embedding normal 0.1, softmax normal 0.01 and bias 0, so that training
    starts near the uniform prediction, as the paper's curves do.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        embedding_dim: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        widths = [embedding_dim, *hidden]
        self.layers = nn.ModuleList(LayerNormLSTM(width, size) for width, size in zip(widths, hidden, strict=False))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(widths[-1], vocabulary)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)
        self.finish(compile=compile)

    def forward(self, tokens: Tensor, carry: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, steps, vocabulary] of tokens int64 [batch, steps], and the state after them.

        carry: the state before them, [2, batch, H] a layer; None starts from zero
        """
        batch = tokens.shape[0]
        values = self.embedding(tokens.t())
        states = []
        for number, layer in enumerate(self.layers):
            state = values.new_zeros(2, batch, layer.size) if carry is None else carry[number].to(values.device)
            values, state = layer(self.dropout(values), state)
            states.append(state)
        values = self.dropout(values).transpose(0, 1)
        weight = self.output.weight
        if (
            weight.dtype == torch.bfloat16 or type(weight) is not nn.Parameter
        ):  # a cheap teacher's: else a product per row of the batch
            values = values.contiguous()
        return self.output(values), states
