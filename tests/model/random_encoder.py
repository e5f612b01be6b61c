"""An encoder for tests that compare what runs it."""

import torch

from mambaad_cli.model.encoder import Encoder, build_encoder


def with_random_norms(name: str) -> Encoder:
    """An encoder with random weights whose batch norms are not the identity."""
    torch.manual_seed(0)
    made = build_encoder(name, (4, 8, 16))
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.bias, std=0.3)
    return made
