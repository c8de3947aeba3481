"""Coresets: real images selected by a rule, the usual baselines of condensation.

Herding, k-center and k-means use the embeddings of a proxy, one network trained on all real images. The difficulty
scores use its training or its outputs. All methods and ipc share the proxy, so it is cached. `full` is the whole
training set.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddm import device, rng
from ddm.augment import DiffAugment
from ddm.bars import bar
from ddm.data.images import ImageData, Normalised, subset
from ddm.device import Machine
from ddm.errors import UserError, lookup
from ddm.evaluation.protocol import check_networks
from ddm.evaluation.training import MOMENTUM, WEIGHT_DECAY, train_step
from ddm.methods import cache
from ddm.methods.plan import Plan, images_per_class
from ddm.methods.sampling import herd, initial_indices, real_images
from ddm.methods.settings import CoresetSettings, ProxySettings
from ddm.networks import Network, empty_network, initialise, untapped
from ddm.ranks import Ranks

BATCH = 256


class Proxy(NamedTuple):
    """The embeddings and difficulty scores of the training images under a trained network."""

    embedding: Tensor | None  # [N, D], on the CPU; None for methods that need only scores
    scores: dict[str, Tensor]  # name -> difficulty [N]; larger is harder


def proxy(data: ImageData, settings: ProxySettings, machine: Machine, method: str) -> Proxy:
    """The proxy, trained by one process or read from the cache. Raises UserError if it is damaged or diverged.

    `settings` also inherit SetSettings. The name of its file depends on all that determines a proxy.
    """
    s, model = settings, untapped(settings.model)
    net = empty_network(model, data.channel, data.num_classes, data.im_size, machine.device)
    net.tap("none")
    parts = (data.digest, data.mean, data.std, model, s.proxy_epochs, s.seed, s.eval_split, s.dsa_strategy, s.lr_net)
    parts += (machine.precision, machine.compile, s.zca, cache.architecture(net))
    path = cache.cache_folder(s) / f"proxy_{data.name}_{model}_{s.proxy_epochs}epochs_{cache.key(*parts)}.pt"
    trained: list[Proxy] = []

    def make(_: list[int]) -> list[dict[str, Any]]:
        forgetting = train_proxy(net, data, s, machine)
        trained.append(observe(net, data, forgetting, method, s.lr_net))  # a network that diverged is not stored
        return [{"net": net.state_dict(), "forgetting": forgetting}]

    ((_, saved),) = cache.made_by_all({0: path}, make, most=1)
    if trained:
        return trained[0]
    try:
        net.load_state_dict(saved["net"])
        forgetting = saved["forgetting"].view(len(data.x_train))
    except Exception as error:  # other content raises many kinds of errors
        raise cache.damaged(path, type(error).__name__) from None
    return observe(machine.laid_out_net(net), data, forgetting, method, s.lr_net)


def train_proxy(net: Network, data: ImageData, settings: ProxySettings, machine: Machine) -> Tensor:
    """Train the proxy on all training images; return how often each image was forgotten, [N].

    SGD and DSA are those of the evaluation, with a constant learning rate. An image is forgotten if it is classified
    correctly in one epoch and wrongly in the next. Images that are never correct count --proxy_epochs + 1. Source:
    Toneva et al., ICLR 2019.
    """
    where = (settings.seed, 0, 0, -1)
    initialise(net, rng.generator(*where, "proxy network"))
    generator = rng.generator(*where, "proxy training")
    machine.laid_out_net(net)
    forward = machine.compiled(net.forward)
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.lr_net, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    n = len(data.x_train)
    right, ever, forgotten = (torch.zeros(n, dtype=torch.long, device=machine.device) for _ in range(3))
    net.train()
    for _ in bar(range(settings.proxy_epochs), desc="proxy network", unit="epoch"):
        for indices in torch.randperm(n, generator=generator).split(BATCH):
            x = DiffAugment(data.batch(indices), settings.dsa_strategy, generator=generator)
            indices = rng.to_device(indices, x.device)
            y = data.y_train[indices]
            _, out = train_step(forward, optimizer, F.cross_entropy, machine.laid_out(x), y, machine)
            now = (out.argmax(1) == y).long()
            forgotten[indices] += right[indices] & (1 - now)
            right[indices], ever[indices] = now, ever[indices] | now
    return torch.where(ever == 1, forgotten, settings.proxy_epochs + 1).cpu()


@torch.no_grad()
def observe(net: Network, data: ImageData, forgetting: Tensor, method: str, lr_net: float) -> Proxy:
    """Embeddings and difficulty scores of all training images under the trained network.

    Sources: uncertainty, Coleman et al., ICLR 2020; el2n and grand (of the last layer), Paul et al., NeurIPS 2021.
    Raises UserError if values are not finite.
    """
    net.eval()
    embeddings, uncertainty, el2n, grand = [], [], [], []
    for indices in torch.arange(len(data.x_train)).split(BATCH):
        x = data.batch(indices)
        phi = net.embed(x)
        p = net.classifier(phi).softmax(1)
        error = (p - F.one_hot(data.y_train[rng.to_device(indices, x.device)], data.num_classes)).norm(dim=1)
        if method in ON_EMBEDDINGS:  # these are gigabytes, and difficulty scores do not need them
            embeddings.append(phi.cpu())
        uncertainty.append(1 - p.max(1).values.cpu())
        el2n.append(error.cpu())
        # The gradient of the last layer's weights and biases is the outer product of (p - y) and (phi, 1).
        grand.append((error * (1 + phi.square().sum(1)).sqrt()).cpu())
    scores = {"forgetting": forgetting.float(), "uncertainty": torch.cat(uncertainty)}
    scores |= {"el2n": torch.cat(el2n), "grand": torch.cat(grand)}
    if not all(x.isfinite().all() for x in (*scores.values(), *embeddings)):
        raise UserError(f"the network that --method {method} uses diverged: lower --lr_net {lr_net}")
    return Proxy(torch.cat(embeddings) if embeddings else None, scores)


# --- methods: (embeddings [n, D] of a class, ipc, generator) -> indices [ipc] --------------------------------


def herding(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Select images whose mean is closest to the class mean. Source: herding (Welling, ICML 2009)."""
    return herd((points - points.mean(0))[None].float(), ipc)[0]


def kcenter(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Start at the image nearest to the class mean, then add the image farthest from the selected ones.

    Source: k-center (Sener & Savarese, ICLR 2018).
    """
    picks = [(points - points.mean(0)).norm(dim=1).argmin()]
    distance = torch.full((len(points),), torch.inf)
    for _ in range(ipc - 1):
        distance = torch.minimum(distance, (points - points[picks[-1]]).norm(dim=1))
        distance[picks[-1]] = -1  # never again, even with duplicates
        picks.append(distance.argmax())
    return torch.stack(picks)


def kmeans(points: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Select the images nearest to the centres of ipc k-means clusters."""
    from sklearn.cluster import KMeans  # imported here: it takes a second, and only this method needs it

    state = int(torch.randint(0, 2**31, (1,), generator=generator))
    centres = KMeans(ipc, n_init=3, random_state=state).fit(points.numpy()).cluster_centers_
    distance = torch.cdist(torch.from_numpy(centres).to(points.dtype), points)
    picks = []
    for row in distance:  # one per centre; an image is selected only once
        row[picks] = torch.inf
        picks.append(int(row.argmin()))
    return torch.tensor(picks)


ON_EMBEDDINGS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "herding": herding,
    "kcenter": kcenter,
    "kmeans": kmeans,
}
ON_SCORES = ("forgetting", "uncertainty", "el2n", "grand")


def methods() -> tuple[str, ...]:
    return ("random", *ON_EMBEDDINGS, *ON_SCORES, "full")


def needs_proxy(method: str) -> bool:
    return method not in ("random", "full")


def select(
    data: ImageData,
    method: str,
    counts: tuple[int, ...],
    seed: int,
    experiment: int,
    proxy: Proxy | None = None,
    order: str = "hardest",
) -> Tensor:
    """Indices [N] of the training images that a method selects; all methods but random and full need `proxy`."""
    if method == "random":
        return initial_indices(data, counts, seed, experiment)  # the initial images of recipes
    selected = []
    for c, indices in enumerate(data.indices):
        if method in ON_EMBEDDINGS:
            generator = rng.generator(seed, experiment, 0, c, "selection")
            at = ON_EMBEDDINGS[method](proxy.embedding[indices], counts[c], generator)
        else:
            ranked = proxy.scores[method][indices].argsort(descending=order == "hardest", stable=True)
            at = ranked[: counts[c]]
        selected.append(indices[at])
    return torch.cat(selected)


def coreset_plan(settings: CoresetSettings, data: ImageData, group: Ranks | None = None) -> Plan:
    """The plan of a coreset. Raises UserError if the settings do not fit the data."""
    full = settings.method == "full"
    if settings.subset_size > len(data.x_train):
        raise UserError(
            f"--subset_size {settings.subset_size}: {data.name} has {len(data.x_train)} training images: lower it"
        )
    counts = [0] * data.num_classes if full else images_per_class(data, settings.ipc)
    if full and not all(map(len, data.indices)):
        images_per_class(data, 1)  # raises UserError that names the class without images
    cache.cache_folder(settings)
    empty_network(settings.model, data.channel, data.num_classes, data.im_size, "meta")
    check_networks(settings, data)
    images = sum(counts) or settings.subset_size or len(data.x_train)
    images *= settings.epoch_eval_train + 1
    if needs_proxy(settings.method):  # on large data the proxy decides, so that all ipc share one
        images += settings.proxy_epochs * len(data.x_train)
    pixels = 3 * images * data.im_size[0] * data.im_size[1]
    machine = device.choose(settings, settings.device, pixels)
    settings = settings.but(precision=machine.precision, compile=machine.compile)
    return Plan(settings=settings, counts=tuple(counts), machine=machine, ranks=group or Ranks())


class Coreset:
    """A Maker (see maker.py) that selects real images: a set is complete after `start`."""

    iterations = 0

    def __init__(self, data: ImageData, settings: CoresetSettings, group: Ranks | None = None):
        """Make the plan; `data` is on the CPU. Raises UserError for invalid settings."""
        self.plan, self.data = coreset_plan(settings, data, group), data
        self.kind = settings.method
        self.proxy: Proxy | None = None
        self._images: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        ipc = 0 if self.kind == "full" else self.plan.settings.ipc
        return self.plan.settings.values() | {"Iteration": 0, "ipc": ipc}

    def cautions(self) -> list[str]:
        order = self.plan.settings.order
        unused = order != "hardest" and self.kind not in ON_SCORES
        return [f"--order {order} has no effect with --method {self.kind}"] * unused

    def prepare(self, remaining: int) -> None:
        plan = self.plan
        self.data = self.data.to(plan.machine.device)
        self.labels = plan.labels()
        if remaining and needs_proxy(self.kind) and plan.ranks.first:  # which selects for all ranks
            self.proxy = proxy(self.data, plan.settings, plan.machine, self.kind)

    def start(self, experiment: int, saved: tuple[Tensor, Tensor, Tensor | None] | None) -> None:
        data, plan, indices = self.data, self.plan, None
        if self.kind == "full":  # too large for the set's file, which has no images
            self._images = torch.empty(0, *data.shape)
            return
        if plan.ranks.first:
            s = plan.settings
            indices = select(data, self.kind, plan.counts, s.seed, experiment, self.proxy, s.order)
        self._images = data.batch(plan.ranks.from_first(indices))

    def step(self, iteration: int) -> None:
        raise AssertionError("a coreset takes no steps")

    def check(self) -> list:
        return []

    def images(self) -> Tensor:
        return self._images

    def state(self) -> tuple[None, None, None]:
        return None, None, None  # a resumed run selects again

    def training_set(self, experiment: int, images: Tensor) -> tuple[Tensor | Normalised, Tensor]:
        data, settings = self.data, self.plan.settings
        if self.kind != "full":
            return images.to(self.plan.machine.device), self.labels
        generator = rng.generator(settings.seed, experiment, 0, -1, "subset")
        indices = torch.randperm(len(data.x_train), generator=generator)[: settings.subset_size or None]
        images = subset(data.x_train, indices.to(data.x_train.device))
        return Normalised(data, images), data.y_train[indices.to(data.y_train.device)]

    def baseline(self, experiment: int) -> Tensor:
        return real_images(self.data, self.plan.counts, self.plan.settings.seed, experiment)


def check_method(settings: CoresetSettings) -> None:
    """Raise UserError for an unknown method, or a flag that it does not use."""
    lookup(dict.fromkeys(methods()), settings.method, "method")
    if settings.subset_size and settings.method != "full":
        raise UserError(f"--subset_size is for --method full: use --ipc with --method {settings.method}")
