# %% [markdown]
# # Train on a condensed set
#
# The set of README's three-minute command, ten or a hundred images, trains a network of yours. Nothing here is special:
# the set is a torch `Dataset`, the loop is the usual one. It needs `ddm`: installed (`pip install .`), or the
# repository's root in `PYTHONPATH`. Run it where you ran the command; for another set,
# `python train_on_condensed.py PATH_OF_SET [FOLDER_OF_DATA]`.

# %%
import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ddm import CondensedDataset
from ddm.augment import DiffAugment
from ddm.data.loading import load
from ddm.networks import get_network

named = [arg for arg in sys.argv[1:] if not arg.startswith("-")] if Path(sys.argv[0]).suffix == ".py" else []
path = Path(named[0] if named else "result_digits/res_DM_Digits_ConvNet_gram_1ipc.pt")
told = json.loads((path.parent / "results.json").read_text())
args = told["args"]

# %% [markdown]
# Condensed images are normalised already. Test images must be normalised with the same constants, and `data.normalise`
# does that. It does not whiten: a set made with `--zca` is for `ddm evaluate`.

# %%
torch.manual_seed(0)
train = CondensedDataset(path)
trainloader = DataLoader(train, batch_size=256, shuffle=True)
data = load(args["dataset"], named[1] if len(named) > 1 else "data", args.get("res"))
net = get_network(args["model"], data.channel, data.num_classes, data.im_size)

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
said = f"{100 * told['mean']:.2f} +- {100 * told['std']:.2f} %"
print(f"{len(train)} images: {100 * accuracy:.2f} %; results.json says {said}")
