"""The Transformer: it looks back only, knows distances, and ties its softmax where asked to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from odist.models.transformer import Transformer, rotate, rotations


def model(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(13, **{"layers": 2, "width": 16, "heads": 2, **options})


def test_a_token_changes_nothing_before_it():
    net = model()
    tokens = torch.randint(13, (3, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 13
    before, carry = net(tokens)
    after, _ = net(changed)
    assert carry is None
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_order_of_earlier_tokens_matters():
    net = model()
    logits, _ = net(torch.tensor([[1, 2, 3], [2, 1, 3]]))
    assert not torch.allclose(logits[0, 2], logits[1, 2], atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    torch.manual_seed(1)
    query, key = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    turned = rotations(12, 8, like=query)
    products = rotate(query.expand(12, 8), turned) @ rotate(key.expand(12, 8), turned).T
    for distance in range(-3, 4):
        torch.testing.assert_close(products.diagonal(distance), products.diagonal(distance)[:1].expand(12 - abs(distance)), rtol=1e-5, atol=1e-5)  # fmt: skip
    assert abs(float(products[0, 0] - products[0, 3])) > 1e-3
    assert torch.allclose(rotate(query.expand(12, 8), turned).norm(dim=1), query.norm().expand(12), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_tying_shares_the_table(tied):
    net = model(tied=tied)
    tables = [name for name, parameter in net.named_parameters() if len(parameter) == 13]
    assert tables == (["embedding"] if tied else ["embedding", "output"])
    tokens = torch.randint(13, (4, 6))
    net(tokens)[0].sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.is_sparse for parameter in net.parameters())


def test_it_learns_to_copy():
    """One batch of a periodic sequence is learnt by heart: attention reaches back a whole period."""
    torch.set_num_threads(1)
    net = model()
    pattern = torch.randint(13, (4, 5))
    tokens = pattern.repeat(1, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
