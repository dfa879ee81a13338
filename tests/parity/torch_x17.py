"""X1.7 in PyTorch, written from the description of HistoSegNet and not from the JAX module.

Dropout is left out. Names of convolutions are those of torchvision's VGG16.
"""

import torch
from torch import nn
from torch.nn import functional as F

LAST = "14"  # the convolution before the ReLU whose Grad-CAM is taken


class X17(nn.Module):
    def __init__(self, num_classes, channels, pooling):
        super().__init__()
        depth, self.pooling = 3, pooling
        self.features, self.norms = nn.ModuleDict(), nn.ModuleDict()
        for index, block in ((0, 0), (2, 0), (5, 1), (7, 1), (10, 2), (12, 2), (14, 2)):
            self.features[str(index)] = nn.Conv2d(depth, channels[block], 3, padding=1)
            self.norms[str(index)] = nn.BatchNorm2d(channels[block])
            depth = channels[block]
        self.fc = nn.Linear(depth, num_classes)

    def forward(self, x):
        """Returns logits (N, C), and the last ReLU (N, D, h, w)."""
        for index, conv in self.features.items():
            last = F.relu(conv(x))
            x = self.norms[index](last)
            if index in ("2", "7", "14"):
                x = F.max_pool2d(x, 2)
        pooled = x.amax(dim=(2, 3)) if self.pooling == "maximum" else x.mean(dim=(2, 3))
        return self.fc(pooled), last


def weighted_loss(logits, labels, class_weights):
    """Binary cross entropy by its definition, each class times its weight, mean over all."""
    p = torch.sigmoid(logits)
    entropy = -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p))
    return (entropy * class_weights).mean()


def grad_cam(model, x):
    """Returns the maps (N, C, h, w) of the last ReLU, weighted by spatial means of gradients."""
    logits, last = model(x)
    maps = []
    for index in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), last, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * last).sum(dim=1))
    return torch.stack(maps, dim=1).detach()
