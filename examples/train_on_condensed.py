# %% [markdown]
# # Train on a condensed set
#
# The set of README's three-minute command, ten or a hundred images, trains a network of yours. Nothing here is special:
# the set is a torch `Dataset`, the loop is the usual one. Run it in the repository's root; another set:
# `python examples/train_on_condensed.py PATH_OF_SET [FOLDER_OF_DATA]`.

# %%
import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path.cwd()))
from utils import CondensedDataset, DiffAugment, ParamDiffAug, get_dataset, get_network

named = [arg for arg in sys.argv[1:] if not arg.startswith("-")] if Path(sys.argv[0]).suffix == ".py" else []
path = Path(named[0] if named else "result_digits/res_DM_Digits_ConvNet_gram_1ipc.pt")
told = json.loads((path.parent / "results.json").read_text())
args = told["args"]

# %% [markdown]
# Condensed images are normalised already; test images must be, with the same constants. `get_dataset` does that. (It
# does not whiten: a set made with `--zca` is for `evaluate.py`.)

# %%
torch.manual_seed(0)
train = CondensedDataset(path)
channel, im_size, num_classes, *_, testloader = get_dataset(args["dataset"], named[1] if len(named) > 1 else "data")
trainloader = DataLoader(train, batch_size=256, shuffle=True)
net = get_network(args["model"], channel, num_classes, im_size)

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
        images = DiffAugment(images, args["dsa_strategy"], param=ParamDiffAug())
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

net.eval()
with torch.no_grad():
    right = sum((net(images).argmax(1) == labels).sum().item() for images, labels in testloader)
accuracy = right / len(testloader.dataset)

# %%
said = f"{100 * told['mean']:.2f} +- {100 * told['std']:.2f} %"
print(f"{len(train)} images: {100 * accuracy:.2f} %; results.json says {said}")
