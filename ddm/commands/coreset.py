"""`ddm coreset`: real images chosen by a rule, evaluated as condensed sets are."""

from ddm.commands.settings import CoresetRunSettings
from ddm.data.loading import short_name
from ddm.methods import coreset, plan
from ddm.runs import experiments
from ddm.runs.folder import set_stem


def run(asked: CoresetRunSettings) -> None:
    """Select and evaluate. Raises UserError for what the user can correct."""
    coreset.check_method(asked)
    settings = plan.settle(asked)
    full = settings.method == "full"
    size = f"{settings.subset_size or 'all'} training images" if full else f"{settings.ipc} image(s) per class"
    size = f"images as {settings.ipc} says" if isinstance(settings.ipc, str) and not full else size
    ipc = 0 if full else settings.ipc
    experiments.carry_out(
        asked,
        settings,
        "coreset",
        lambda data, own, digest, group, say: coreset.Coreset(data, own, digest, group),
        set_stem(settings.method, short_name(settings.dataset), settings.model, ipc, settings.zca),
        size,
    )
