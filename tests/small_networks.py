"""Two tiny networks that count and compute as the benchmark's do."""

import torch
from torch import nn

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """An image of 4 x 4 pixels to `hidden` numbers to 5 classes."""

    def __init__(self, hidden=7, in_chans=2):
        super().__init__()
        self.in_chans = in_chans
        self.hidden = nn.Linear(in_chans * 16, hidden)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x):
        return self.head(self.hidden(x.flatten(1)))
