"""Our dropout and our attention with it, against torch's."""

import pytest
import torch
from torch.nn import functional

from trainers.network.dropping import attention, dropped


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_each_number_is_dropped_with_the_share_and_the_rest_scaled(share: float) -> None:
    torch.manual_seed(0)
    states = torch.randn(301, 1003) + 3
    out = dropped(states, share, training=True)
    gone = out == 0
    assert gone.float().mean().item() == pytest.approx(share, abs=0.003)
    torch.testing.assert_close(out[~gone], (states / (1 - share))[~gone], rtol=1e-4, atol=1e-4)
    # No row, column or neighbour has a share of its own: 301 003 draws, in lanes of 4.
    for lane in range(4):
        assert gone.flatten()[lane::4].float().mean().item() == pytest.approx(share, abs=0.006)
    both = (gone[:, 1:] & gone[:, :-1]).float().mean().item()
    assert both == pytest.approx(share**2, abs=0.004)


def test_what_is_dropped_comes_from_the_seed_and_only_in_training() -> None:
    states = torch.randn(50, 40)
    assert torch.equal(dropped(states, 0.4, training=False), states)
    assert torch.equal(dropped(states, 0.0, training=True), states)
    torch.manual_seed(7)
    one, next_one = dropped(states, 0.4, training=True), dropped(states, 0.4, training=True)
    torch.manual_seed(7)
    assert torch.equal(dropped(states, 0.4, training=True), one)
    assert not torch.equal(one, next_one)


def test_gradients_pass_where_nothing_was_dropped() -> None:
    states = torch.randn(30, 20, requires_grad=True)
    out = dropped(states, 0.25, training=True)
    out.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad == 0, out == 0)
    assert states.grad[out != 0].unique().numel() == 1


def test_attention_is_torchs_but_for_what_is_dropped() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 8, dtype=torch.float64) for length in (5, 7, 7))
    mask = torch.where(torch.rand(2, 1, 5, 7) < 0.3, -1e30, 0.0).double()
    mask[0, 0, 0] = -1e30  # sees nothing: whatever comes out is finite
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    for share, training in ((0.3, False), (0.0, True)):
        torch.testing.assert_close(attention(query, key, value, mask, share, training), expected)
    many = torch.stack([attention(query, key, value, mask, 0.3, True) for _ in range(4000)]).mean(0)
    assert torch.isfinite(many).all()
    torch.testing.assert_close(many[:, :, 1:], expected[:, :, 1:], atol=0.15, rtol=0)
    torch.testing.assert_close(
        attention(query, key, value, None, 1e-9, True), functional.scaled_dot_product_attention(query, key, value)
    )
