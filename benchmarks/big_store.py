"""Memory of a process with a store far larger than memory, and the time of sampling relative to computing.

    python benchmarks/big_store.py [--gigabytes 20] [--classes 1000] [--size 64] [--batch_real 256] [--folder DIR]

The script makes a sparse store of zeros. Reading it costs page faults and a copy, like data in the system's cache, but
no disk access. It samples real batches of some classes, then reads every image once. It prints the seconds for drawing,
reading and normalising one class's batch, the seconds for augmenting and embedding it, and their ratio. It also prints
the peak memory of the process, with libraries and network.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import step
import timing
import torch

from ddm import device, rng
from ddm.augment import augment_classes
from ddm.data import loading, store
from ddm.networks import initialise


def make(path: Path, count: int, classes: int, size: int) -> None:
    path.mkdir(parents=True)
    shape = (3, size, size)
    counts = {"train": count, "test": classes}
    for split, n in counts.items():
        header = store.npy_header((n, *shape))
        with open(path / f"x_{split}.npy", "wb") as file:
            file.write(header)
            file.truncate(len(header) + n * int(np.prod(shape)))  # sparse
        np.save(path / f"y_{split}.npy", np.arange(n) * classes // n)
    names = [f"class {c}" for c in range(classes)]
    metadata = {"format": store.FORMAT, "name": "big", "class_names": names, "shape": shape, "counts": counts}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3, "digest": "none", "recipe": {}}
    (path / "store.json").write_text(json.dumps(metadata))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_real", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", default=None, help="folder of the temporary store")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "big.store"
        count = int(options.gigabytes * 1e9) // (3 * options.size**2)
        make(path, count, options.classes, options.size)
        libraries = device.peak_memory("cpu")
        data = loading.load(str(path), folder)
        opened = device.peak_memory("cpu")
        maker = step.started("MMD", data, ipc=1, batch_real=options.batch_real, compile="off")
        initialise(maker.matcher.net, torch.Generator().manual_seed(0))
        sampler, drawn = maker.draws.sampler, [0]

        def sample() -> torch.Tensor:
            drawn[0] += 1
            c = drawn[0] * 37 % options.classes
            (rows,) = sampler.indices(range(c, c + 1), lambda cls: rng.generator(0, 0, drawn[0], cls, "real images"))
            return data.batch(rows)[None]

        real = sample()

        def compute() -> None:
            maker.matcher.real_features(augment_classes(real, maker.plan.settings.dsa_strategy, [drawn[0]]))

        seconds = timing.medians({"sample": sample, "compute": compute}, options.repeats)
        stepped = device.peak_memory("cpu")
        for first in range(0, count, 4096):
            data.x_train[first : first + 4096]
        peak = device.peak_memory("cpu")
    print(timing.settings())
    print(f"store of {count * 3 * options.size**2 / 1e9:.1f} GB, {count} images, {options.classes} classes")
    sampling, computing = seconds["sample"], seconds["compute"]
    times = f"sampled in {sampling:.4f} s, embedded in {computing:.4f} s, ratio {sampling / computing:.3f}"
    print(f"{options.batch_real} images: {times}")
    named = {"libraries": libraries, "store opened": opened, "stepped": stepped, "every image read once": peak}
    print("peak memory so far: " + ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in named.items()))


if __name__ == "__main__":
    main()
