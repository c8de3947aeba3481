"""`ddm coreset`: selects real images and evaluates them like condensed sets."""

from ddm.commands.settings import CoresetRunSettings
from ddm.data.loading import short_name
from ddm.methods import coreset, plan
from ddm.runs import experiments
from ddm.runs.folder import set_size, set_stem


def run(requested: CoresetRunSettings) -> None:
    """Select and evaluate. Raises UserError for invalid settings, data or files."""
    coreset.check_method(requested)
    settings = plan.settle(requested)
    full = settings.method == "full"
    size = f"{settings.subset_size or 'all'} training images" if full else set_size(settings.ipc)
    ipc = 0 if full else settings.ipc
    experiments.carry_out(
        requested,
        settings,
        "coreset",
        "",
        lambda data, s, group, say: coreset.Coreset(data, s, group),
        set_stem(settings.method, short_name(settings.dataset), settings.model, ipc, settings.zca),
        size,
    )
