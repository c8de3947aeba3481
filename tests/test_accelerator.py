"""What only a GPU would show, as near as a CPU comes: fake CUDA tensors, mocked queries, recorded copies."""

from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, parse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddm import device, ranks, rng
from ddm.data import loading
from ddm.data.images import Batches, Normalised
from ddm.device import Machine
from ddm.errors import UserError
from ddm.evaluation import protocol
from ddm.evaluation.settings import ProtocolSettings
from ddm.losses import mean_gram, readout_matching
from ddm.methods.plan import Chunks, choose_chunk
from ddm.networks import NORMS, get_network
from ddm.settings import MachineSettings, declarations


class Copies(TorchDispatchMode):
    """Records the copies between devices as (from, to, non_blocking)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and "device" in kwargs:
            self.seen.append((args[0].device.type, kwargs["device"].type, kwargs.get("non_blocking", False)))
        return func(*args, **kwargs)


@pytest.fixture
def unpinned(monkeypatch):
    """Pinned memory needs a driver: record the tensors that would be pinned."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.device.type) or x)
    return pinned


@pytest.fixture
def gpu(monkeypatch):
    """Two mocked GPUs with TF32 and bfloat16; records which calls reach CUDA, in order."""
    calls = []

    def answer(name, value):
        monkeypatch.setattr(torch.cuda, name, lambda *args, **options: calls.append((name, *args)) or value)

    for name, value in {"is_available": True, "device_count": 2, "current_device": 0, "set_device": None}.items():
        answer(name, value)
    for name, value in {"get_device_capability": (9, 0), "is_bf16_supported": True}.items():
        answer(name, value)
    monkeypatch.setattr(device, "compiler_problem", lambda device: None)
    before = tf32()
    yield calls
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def tf32():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


# --- G1: copies of indices ---------------------------------------------------------------------------------------


def test_only_copies_to_cuda_do_not_wait(unpinned):
    with FakeTensorMode(), Copies() as copies:
        there = rng.to_device(torch.arange(4), "cuda")
        assert rng.to_device(there, "cuda").device.type == "cuda" and unpinned == ["cpu"]
        rng.to_device(there, "cpu")
    assert copies.seen == [("cpu", "cuda", True), ("cuda", "cpu", False)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_keys_of_images_on_the_cpu_never_come_from_the_gpu(shuffle, unpinned):
    """An asynchronous copy of the key to the CPU would be read too early: wrong images under right labels."""
    plain = SimpleNamespace(normalise=lambda images: images)
    with FakeTensorMode(), Copies() as copies:
        images, labels = torch.empty(7, 3, 4, 4), torch.empty(7, dtype=torch.long, device="cuda")
        generator = torch.Generator()
        batches = list(Batches(Normalised(plain, images), labels, 3, shuffle, generator))
    assert [(len(x), x.device.type, y.device.type) for x, y in batches] == [(n, "cpu", "cuda") for n in (3, 3, 1)]
    assert not [seen for seen in copies.seen if seen[1] == "cpu"]


def test_images_on_the_cpu_keep_their_labels():
    plain, images = SimpleNamespace(normalise=lambda images: images), torch.arange(7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    for labels in (torch.arange(7), torch.arange(7, device="meta")):
        batches = Batches(Normalised(plain, images), labels, 3, True, torch.Generator().manual_seed(3))
        found = list(batches)
        assert torch.equal(torch.cat([x for x, _ in found]), order)
        assert labels.is_meta or all(torch.equal(x, y) for x, y in found)


# --- G2: types under autocast -------------------------------------------------------------------------------------


@pytest.fixture
def autocast_as_on_cuda():
    """torch.autocast("cuda") disables itself without a GPU; the dispatcher's switch works."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("norm", [*NORMS])
@pytest.mark.parametrize("compiling", [False, True])
def test_taps_have_one_type_everywhere(norm, compiling, autocast_as_on_cuda, monkeypatch):
    suffix = {"none": "NN", "batchnorm": "BN", "layernorm": "LN", "instancenorm": "IN", "groupnorm": "GN"}[norm]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    for kind in ("cpu", "cuda"):
        with FakeTensorMode(), torch.device(kind), Machine("cpu", "bf16").autocast():
            net = get_network(f"ConvNet{suffix}", 3, 10, (8, 8))
            for site in net.sites:
                net.tap(site)
                embedding, maps = net.embed(torch.empty(2, 3, 8, 8))
                assert {x.dtype for x in (embedding, *maps)} == {torch.bfloat16}, (kind, site)


# --- G3: TF32, and the memory layout -----------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True), (None, True)])
def test_tf32_is_chosen_set_and_recorded(precision, allowed, gpu):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = not allowed, not allowed
    machine = device.choose(MachineSettings(precision=precision, compile="off"), "cuda", 0)
    assert tf32() == (allowed, allowed)
    assert machine.precision == (precision or "tf32")
    data = SimpleNamespace(x_test=range(3), normalisation=SimpleNamespace(whitened=False))
    assert f", {machine.precision}, " in protocol.protocol(ProtocolSettings(), machine, data)


def test_long_runs_on_cuda_are_in_bfloat16(gpu):
    assert device.choose(MachineSettings(), "cuda", 10**12) == Machine("cuda", "bf16", "on")


def test_a_cpu_and_an_old_gpu_have_no_tf32(gpu, monkeypatch):
    before = tf32()
    for precision in (None, "tf32"):
        assert device.choose(MachineSettings(precision=precision, compile="off"), "cpu", 0).precision == "fp32"
    assert tf32() == before
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert device.choose(MachineSettings(precision="tf32", compile="off"), "cuda", 0).precision == "fp32"
    assert tf32() == (False, False)


def test_every_precision_has_its_row():
    assert set(declarations(MachineSettings)["precision"].choices) == set(device.TF32)


@pytest.mark.parametrize("initialised", [False, True])
def test_a_library_call_leaves_the_process_as_it_was(initialised, gpu, monkeypatch):
    before = tf32()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    with device.restored():
        device.set_precision("cuda", "tf32")
        assert tf32() == (True, True)
    assert tf32() == before
    assert ("current_device",) not in gpu or initialised  # the question would open a context on GPU 0
    gpu.clear()
    with device.restored():
        device.select("cuda:1")
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [call for call in gpu if call[0] == "set_device"] == [("set_device", "cuda:1"), ("set_device", 0)]


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older torch has one way")
def test_a_program_with_the_newer_flags_gets_them_back(gpu):
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with device.restored():  # from here on the older flags raise an error
            device.set_precision("cuda", "tf32")
            assert [backend.fp32_precision for backend in backends] == ["tf32"] * 2
        assert [backend.fp32_precision for backend in backends] == ["ieee"] * 2
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # torch's defaults


def test_gram_products_of_bfloat16_maps_are_in_bfloat16():
    seen = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                seen.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Products():
        gram = mean_gram(torch.empty(2, 3, 4, 8, 8, dtype=torch.bfloat16, device="cuda"))
    assert gram.dtype == torch.float32  # the mean over images
    assert seen == [torch.bfloat16]


def test_channels_are_last_on_cuda_and_in_compiled_runs():
    with FakeTensorMode():
        images = torch.empty(2, 5, 3, 8, 8, device="cuda")
        for compile in ("off", "on"):
            laid_out = Machine("cuda:0", compile=compile).laid_out(images)
            assert laid_out.shape == images.shape
            assert laid_out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert Machine("cpu").laid_out(images) is images
    for machine, last in ((Machine("cpu"), False), (Machine("cpu", compile="on"), True), (Machine("cuda:0"), True)):
        weight = machine.laid_out_net(get_network("ConvNetD1", 3, 10, (8, 8))).features[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is last


# --- G4: a regression that can't be solved ------------------------------------------------------------------------


def test_a_failed_factorisation_gives_nan():
    generator = torch.Generator().manual_seed(0)
    real, syn = (torch.randn(3, n, 8, generator=generator) for n in (5, 2))
    assert readout_matching(real, syn, 0.1).isfinite().all()
    factor, info = torch.linalg.cholesky_ex(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert info > 0 and factor.isfinite().all()  # such a factor is wrong, and looks good
    assert readout_matching(real, syn, -1.0).isnan().all()


# --- G5: the selected GPU -----------------------------------------------------------------------------------------


def test_a_numbered_gpu_is_selected_before_anything_is_asked_of_it(gpu):
    settings = parse("DM_KNearest", *QUICK, "--device", "cuda:1", "--compile", "on")
    assert settings.device == "cuda:1"
    device.choose(settings, settings.device, 10**12)
    names = [call[0] for call in gpu]
    assert names.count("set_device") == 1 and ("set_device", "cuda:1") in gpu
    assert names.index("set_device") < names.index("is_bf16_supported")
    assert "get_device_capability" not in names[: names.index("set_device")]


@pytest.mark.parametrize(("name", "found"), [("cuda", "cuda:1"), ("cuda:0", None), ("cpu", "cpu"), ("auto", "cuda:1")])
def test_the_gpu_of_a_rank(name, found, gpu, monkeypatch):
    for variable, value in {"MASTER_ADDR": "x", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(variable, value)
    if found is None:
        with pytest.raises(UserError, match="give --device cuda, one GPU per rank"):
            ranks.local_device(name)
        return
    assert ranks.local_device(name) == found
    assert [call for call in gpu if call[0] == "set_device"] == [("set_device", found)] * (found != "cpu")


# --- G6, G7: memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_libraries_on_the_gpu_run_out_of_memory_too(error, expected):
    assert device.is_out_of_memory(error) is expected


def test_other_processes_on_the_gpu_do_not_change_the_chunk(data_path, monkeypatch):
    settings = parse("DM_GramMatching", *QUICK, "--data_path", data_path)
    data, found = loading.load("CIFAR10", data_path), set()
    settings = settings.but(device="cuda:0")
    for free in (2**20, 2**30, 3 * 2**30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 4 * 2**30))
        properties = SimpleNamespace(total_memory=4 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, p=properties: p)
        found.add(choose_chunk(settings, data, 10 * [2]))
    assert found == {10}
    properties = SimpleNamespace(total_memory=2**24)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert choose_chunk(settings, data, 10 * [2]) == 1  # a GPU of 16 MiB


def test_small_changes_of_free_memory_do_not_matter(monkeypatch):
    found = set()
    for free in (2**33, 2**33 + 10**8, 2**33 + 10**9):
        monkeypatch.setattr(device, "free_memory", lambda device, free=free: free)
        found.add(device.memory_budget("cpu"))
    assert found == {2**32}
    monkeypatch.setattr(device, "free_memory", lambda device: None)
    assert device.memory_budget("cpu") is None


@pytest.mark.parametrize(
    ("line", "mounted", "limit", "used", "droppable"),
    [
        ("0::", "", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:", "memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_limits_of_slurm_and_containers_count(line, mounted, limit, used, droppable, tmp_path):
    """Each group on the way up may have a limit; version 2 says "max" where there is none."""

    def group(path, **values):
        folder = tmp_path / "sys/fs/cgroup" / mounted / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (folder / {"limit": limit, "used": used, "stat": "memory.stat"}[name]).write_text(f"{value}\n")

    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/other\n{line}/slurm/job/step\n")
    assert not list(device.left_by_limits(tmp_path))
    group("slurm/job/step", limit="max", used=70, stat="anon 60")
    group("slurm/job", limit=100, used=80, stat=f"anon 70\n{droppable} 5")
    group("slurm", limit=50, used=80, stat="anon 80")
    assert list(device.left_by_limits(tmp_path)) == [25, 0]


def test_free_memory_is_what_the_least_limit_leaves(monkeypatch):
    monkeypatch.setattr(device, "left_by_limits", lambda: iter([2**62, 12345]))
    assert device.free_memory("cpu") == 12345
    monkeypatch.setattr(device, "left_by_limits", lambda: iter([]))
    assert device.free_memory("cpu") > 2**20


def test_the_record_of_chunks():
    start = (0, 1)
    chunks = Chunks.of(10)
    assert chunks.limited(5, start, start).text() == 5  # no step was taken with 10
    chunks = chunks.limited(5, (0, 20), start).limited(2, (1, 3), start)
    assert chunks.text() == "10,5@0:20,2@1:3" and Chunks.of(chunks.text()) == chunks
    where = [(0, 1), (0, 19), (0, 20), (0, 999), (1, 2), (1, 3), (4, 1)]
    assert [chunks.at(*place) for place in where] == [10, 10, 5, 5, 5, 2, 2]
    assert chunks.limited(3, (0, 7), start).text() == "10,3@0:7,2@1:3"  # a repeated run that runs out earlier
    assert chunks.limited(2, (0, 20), start).text() == "10,2@0:20"


@pytest.mark.parametrize("text", ["10,", "10,5", "10,5@0", "10,0@0:1", "10,5@0:0", "0,5@0:1", "10,5@a:1", "x"])
def test_other_records_are_refused(text):
    with pytest.raises(UserError, match="--class_chunk"):
        parse("DM_KNearest", *QUICK).but(class_chunk=text)
