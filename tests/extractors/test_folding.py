"""Folding changes no output, and where it would, nothing is folded."""

import timm
import torch
from torch import nn

from pipeline.extractors.folding import fold


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def settled(model: nn.Module) -> nn.Module:
    for norm in norms(model):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.bias, 0, 0.2)
    return model.eval()


class Swapped(nn.Module):
    """Registered as convolution, normalisation; used the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


def test_a_network_of_timms_loses_its_normalisations_and_not_its_outputs() -> None:
    torch.manual_seed(0)
    model = settled(timm.create_model("tf_efficientnet_lite0"))
    probe = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = model.forward_features(probe)
        fold(model, model.forward_features, probe)
        after = model.forward_features(probe)
    assert not norms(model)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    assert not torch.equal(after, before)


def test_what_is_used_in_another_order_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = settled(Swapped())
    probe = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        before = model(probe)
        fold(model, model, probe)
        assert torch.equal(model(probe), before)
    assert len(norms(model)) == 1
