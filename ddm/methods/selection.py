"""Coresets: which real images of a class stand for it, the baselines of every condensation paper.

Herding, k-center and k-means look at embeddings, the difficulty scores at the training, of a proxy: one network trained
on all real images. It is kept in a cache of its own, as every method and ipc wants the same.
"""

import hashlib
import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ddm import rng
from ddm import speed
from ddm.augment import DiffAugment
from ddm.data.data import ImageData
from ddm.errors import UserError
from ddm.networks import Network, empty_network, initialise, untapped
from ddm.methods.sampling import herd, initial_indices
from ddm.evaluation.training import MOMENTUM, WEIGHT_DECAY

BATCH = 256


class Proxy(NamedTuple):
    """What a trained network says of the training images, in their order."""

    embedding: Tensor | None  # [N, D], on the CPU; None for a method that needs scores only
    scores: dict[str, Tensor]  # difficulty by name, each [N]; larger is harder


def proxy(data: ImageData, args: Namespace, digest: str) -> Proxy:
    """The proxy of args.model, args.proxy_epochs and args.seed, trained now or taken from the cache."""
    net = empty_network(args.model, data.channel, data.num_classes, data.im_size, args.device)
    net.tap("none")
    model = untapped(args.model)
    about = (digest, model, args.proxy_epochs, args.seed, args.eval_split, args.dsa_strategy)
    about += (args.lr_net, args.precision, args.compile, args.zca)
    key = hashlib.blake2b(repr(about).encode(), digest_size=6).hexdigest()
    path = cache_folder(args) / f"proxy_{data.name}_{model}_{args.proxy_epochs}epochs_{key}.pt"
    if not path.exists():
        forgetting = train(net, data, args)
        found = look(net, data, args, forgetting)
        keep(path, {"net": net.state_dict(), "forgetting": forgetting})
        return found
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        forgetting = saved["forgetting"].view(len(data.x_train))
    except Exception as error:  # garbage raises whatever its damage hits
        raise UserError(f"the proxy network in {str(path)!r} is damaged ({type(error).__name__}): delete it") from None
    return look(speed.laid_out_net(net, args), data, args, forgetting)


def cache_folder(args: Namespace) -> Path:
    """Where proxies are kept; raises UserError where that can't be looked into."""
    folder = Path(args.proxy_cache or Path(args.data_path) / "proxies")
    try:
        (folder / "proxy").exists()
    except OSError as error:
        raise UserError(f"--proxy_cache {str(folder)[:80]!r} can't be read: {error.strerror}") from None
    return folder


def keep(path: Path, content: dict) -> None:
    """Write beside `path`, then rename; a warning where the disk refuses."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another run may be writing the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            tmp.write_bytes(buffer.getbuffer())
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)
    except OSError as error:
        text = f"the proxy network can't be kept in {str(path.parent)!r} ({error.strerror}); see --proxy_cache"
        print(f"warning: {text}", file=sys.stderr)


def train(net: Network, data: ImageData, args: Namespace) -> Tensor:
    """Train on all training images, as evaluation networks are trained; how often each was forgotten, [N].

    An image is forgotten when it was classified rightly in an epoch and wrongly in the next; one that never was right
    counts as one epoch more than possible (Toneva et al., ICLR 2019).
    """
    where = (args.seed, 0, 0, -1)
    initialise(net, rng.generator(*where, "proxy network"))
    generator = rng.generator(*where, "proxy training")
    speed.laid_out_net(net, args)
    forward = speed.compiled(net.forward, args)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr_net, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    n = len(data.x_train)
    right, ever, forgotten = (torch.zeros(n, dtype=torch.long, device=args.device) for _ in range(3))
    net.train()
    for _ in tqdm(range(args.proxy_epochs), desc="proxy network", unit="epoch", dynamic_ncols=True):
        for own in torch.randperm(n, generator=generator).split(BATCH):
            x = DiffAugment(data.batch(own), args.dsa_strategy, param=args.dsa_param, generator=generator)
            own = rng.to_device(own, x.device)
            y = data.y_train[own]
            with speed.autocast(x.device, args.precision):
                out = forward(speed.laid_out(x, args))
            loss = F.cross_entropy(out.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            now = (out.detach().argmax(1) == y).long()
            forgotten[own] += right[own] & (1 - now)
            right[own], ever[own] = now, ever[own] | now
    return torch.where(ever == 1, forgotten, args.proxy_epochs + 1).cpu()


@torch.no_grad()
def look(net: Network, data: ImageData, args: Namespace, forgetting: Tensor) -> Proxy:
    """Embeddings and difficulty scores of all training images under the trained network."""
    net.eval()
    embeddings, uncertainty, el2n, grand = [], [], [], []
    for own in torch.arange(len(data.x_train)).split(BATCH):
        x = data.batch(own)
        phi = net.embed(x)
        p = net.classifier(phi).softmax(1)
        error = (p - F.one_hot(data.y_train[rng.to_device(own, x.device)], data.num_classes)).norm(dim=1)
        if args.method in ON_EMBEDDINGS:  # scores do without these gigabytes
            embeddings.append(phi.cpu())
        uncertainty.append(1 - p.max(1).values.cpu())
        el2n.append(error.cpu())
        # Of the last layer's weights and biases the gradient is (p - y) times (phi, 1).
        grand.append((error * (1 + phi.square().sum(1)).sqrt()).cpu())
    scores = {"forgetting": forgetting.float(), "uncertainty": torch.cat(uncertainty)}
    scores |= {"el2n": torch.cat(el2n), "grand": torch.cat(grand)}
    found = Proxy(torch.cat(embeddings) if embeddings else None, scores)
    if not all(x.isfinite().all() for x in (*scores.values(), *embeddings)):
        raise UserError(f"the network that --method {args.method} looks at diverged: lower --lr_net {args.lr_net}")
    return found


# --- methods: (embeddings [n, D] of a class, how many, generator) -> positions [how many] --------------------


def herding(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Images whose mean stays nearest to the mean of the class (Welling, ICML 2009)."""
    return herd((points - points.mean(0))[None].float(), ipc)[0]


def kcenter(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """From the image nearest to the mean, always the one farthest from those picked (Sener & Savarese, ICLR 2018)."""
    picks = [(points - points.mean(0)).norm(dim=1).argmin()]
    distance = torch.full((len(points),), torch.inf)
    for _ in range(ipc - 1):
        distance = torch.minimum(distance, (points - points[picks[-1]]).norm(dim=1))
        distance[picks[-1]] = -1  # never again, even where duplicates are as far
        picks.append(distance.argmax())
    return torch.stack(picks)


def kmeans(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """The images nearest to the centres of ipc clusters."""
    from sklearn.cluster import KMeans  # imported here: it takes a second, and only this method needs it

    state = int(torch.randint(0, 2**31, (1,), generator=generator))
    centres = KMeans(ipc, n_init=3, random_state=state).fit(points.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).to(points.dtype), points)
    picks = []
    for own in distance:  # an image stands for one centre only
        own[picks] = torch.inf
        picks.append(int(own.argmin()))
    return torch.tensor(picks)


ON_EMBEDDINGS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "herding": herding,
    "kcenter": kcenter,
    "kmeans": kmeans,
}
ON_SCORES = ("forgetting", "uncertainty", "el2n", "grand")


def methods() -> tuple[str, ...]:
    return ("random", *ON_EMBEDDINGS, *ON_SCORES, "full")


def select(data: ImageData, args: Namespace, experiment: int, found: Proxy | None) -> Tensor:
    """Indices [N] of the training images that args.method picks; `found` is the proxy's, if it has one."""
    if args.method == "random":
        return initial_indices(data, args, experiment)  # those that recipes start from
    picked = []
    for c, own in enumerate(data.indices):
        if args.method in ON_EMBEDDINGS:
            generator = rng.generator(args.seed, experiment, 0, c, "selection")
            at = ON_EMBEDDINGS[args.method](found.embedding[own], args.counts[c], generator)
        else:
            order = found.scores[args.method][own].argsort(descending=args.order == "hardest", stable=True)
            at = order[: args.counts[c]]
        picked.append(own[at])
    return torch.cat(picked)


def subset(data: ImageData, args: Namespace, experiment: int) -> Tensor:
    """Indices of args.subset_size random training images, or of all where it is 0."""
    n = len(data.x_train)
    generator = rng.generator(args.seed, experiment, 0, -1, "subset")
    return torch.randperm(n, generator=generator)[: args.subset_size or n]
