"""Writes a TorchScript file of a network of ResNet-18's shape, with weights that follow from a seed.

usage: third_party/triton/python benches/compare/cnn.py OUT
"""

import sys

import torch
from torch import nn

SEED = 18


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.first = nn.Sequential(convolution(width_in, width, 3, stride), nn.ReLU())
        self.second = convolution(width, width, 3, 1)
        same = width_in == width and stride == 1
        self.shortcut = nn.Identity() if same else convolution(width_in, width, 1, stride)

    def forward(self, image):
        return torch.relu(self.second(self.first(image)) + self.shortcut(image))


def convolution(width_in, width, size, stride):
    layer = nn.Conv2d(width_in, width, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width))


def network():
    widths = (64, 64, 128, 256, 512)
    layers = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, (width_in, width) in enumerate(zip(widths, widths[1:])):
        layers += [Block(width_in, width, 1 if stage == 0 else 2), Block(width, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


if __name__ == "__main__":
    torch.manual_seed(SEED)
    torch.jit.script(network().eval()).save(sys.argv[1])
