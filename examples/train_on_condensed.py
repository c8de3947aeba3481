# %% [markdown]
# # Train on a condensed set
#
# A condensed set is a torch `Dataset`, and the training loop is the usual one. The notebook condenses 1,437 digits of
# 8x8 pixels to ten per class (about a minute), then trains a network on them. For a saved set, run
# `python train_on_condensed.py PATH_OF_SET [FOLDER_OF_DATA]`. It needs `ddm`: installed (`pip install .`), or a clone.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader
from torchvision.utils import make_grid

# A clone that is not installed: the folders above the script or the notebook.
sys.path.extend(map(str, Path(globals().get("__file__", "notebook")).resolve().parents[:2]))

import ddm
from ddm.augment import DiffAugment
from ddm.data.loading import load
from ddm.networks import get_network

# %% [markdown]
# The set: read from a file, or made here. `ddm.condense` writes no files.

# %%
named = sys.argv[1:] if "__file__" in globals() else []  # a notebook has no arguments
if named:
    train = ddm.load(named[0])
else:
    training = {"num_eval": 3, "epoch_eval_train": 150, "lr_net": 0.05}
    train = ddm.condense(dataset="Digits", ipc=10, preset="fast,best", Iteration=200, **training)
args = train.metadata["args"]
print(f"{len(train)} images of {len(train.class_names)} classes, made from {args['dataset']}")

# %% [markdown]
# One row per class, as pixels in [0, 1].

# %%
grid = make_grid(train.pixels(), nrow=len(train) // len(train.class_names), padding=1)
plt.figure(figsize=(4, 4))
plt.imshow(grid.permute(1, 2, 0).numpy())
plt.axis("off")
plt.show()

# %% [markdown]
# Condensed images are normalised already. Test images must be normalised with the same constants, and `data.normalise`
# does that. It does not whiten: a set made with `--zca` is for `ddm evaluate`.

# %%
torch.manual_seed(0)
trainloader = DataLoader(train, batch_size=256, shuffle=True)
data = load(args["dataset"], named[1] if len(named) > 1 else "data", args.get("res"))
model, accuracies = next(iter(train.accuracies.items()))
net = get_network(model, data.channel, data.num_classes, data.im_size)

# %% [markdown]
# Twenty lines: SGD, a tenth of the learning rate after half of the epochs, and the augmentation that the set was
# condensed for. Without it, accuracy is lower.

# %%
epochs = args["epoch_eval_train"] + 1
optimizer = torch.optim.SGD(net.parameters(), lr=args["lr_net"], momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2 + 1], gamma=0.1)
for _ in range(epochs):
    net.train()
    for images, labels in trainloader:
        images = DiffAugment(images, args["dsa_strategy"])
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

net.eval()
right = 0
with torch.no_grad():
    for first in range(0, len(data.x_test), 256):
        images, labels = (part[first : first + 256] for part in (data.x_test, data.y_test))
        right += (net(data.normalise(images)).argmax(1) == labels).sum().item()
accuracy = right / len(data.x_test)

# %%
mean = 100 * sum(accuracies) / len(accuracies)
print(f"{len(train)} images: {100 * accuracy:.2f} %; ddm measured a mean of {mean:.2f} % (n {len(accuracies)})")
