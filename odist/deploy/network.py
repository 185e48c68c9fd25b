"""What is exported: one network, or several whose mean probability predicts. Its source goes with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Logits and probabilities of one model, or of the mean probability of several, in eval mode.

    models: alike in inputs and outputs; binary: one logit an example, else one a class
    num_inputs: of a model, without its states
    num_states: tensors that each model keeps from one call to the next; 0 for models without state
    """

    def __init__(
        self, models: Sequence[nn.Module], *, binary: bool, num_inputs: int, num_states: Sequence[int]
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.binary = binary
        self.num_inputs = num_inputs
        self.num_states = list(num_states)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits, probabilities and the new states.

        inputs: those of a model, then the states of each model in turn; where these are left out, a model begins anew
        """
        num_inputs = self.num_inputs
        shared, given = inputs[:num_inputs], list(inputs[num_inputs:])
        every, kept = [], []
        for count, model in zip(self.num_states, self.models, strict=True):
            if count:
                own = [given.pop(0) for _ in range(count)] if given else None
                logits, states = model(*shared, own)
                kept += list(states)
            else:
                logits = model(*shared)
                logits = logits[0] if isinstance(logits, tuple) else logits
            every.append(logits.float())
        if len(every) == 1:
            probabilities = torch.sigmoid(every[0]) if self.binary else torch.softmax(every[0], dim=-1)
            return every[0], probabilities, *kept
        stacked = torch.stack(every)
        probabilities = (torch.sigmoid(stacked) if self.binary else torch.softmax(stacked, dim=-1)).mean(dim=0)
        logits = torch.logit(probabilities) if self.binary else torch.log(probabilities)
        return logits, probabilities, *kept
