"""Style matching by Gram matrices: L_MMD + style_ratio * L_CM (DDM, WACV 2025).

    python DM_GramMatching.py --dataset CIFAR10 --ipc 10

The content is the mean embedding (DM). The style is the correlation of channels, the mean Gram matrix of the feature
maps at each tap.
"""

import ddm
from ddm.methods.settings import StyleSettings
from ddm.settings import altered, non_negative, setting


class Settings(StyleSettings, ddm.RecipeSettings):
    model: str = altered(ddm.RecipeSettings, "model", default="ConvNet_gram")
    style_ratio: float = setting(10000.0, "weight of L_CM; 0 is plain DM", check=non_negative, group="objective")


def objective(real, syn, settings):
    terms = {"L_MMD": ddm.losses.mean_matching(real.embedding, syn.embedding)}  # || mean_R phi - mean_S phi ||^2
    if settings.style_ratio:
        terms["L_CM"] = settings.style_ratio * ddm.terms.grams(real, syn, settings)  # lambda * || G_S - G_R ||_F^2
    return terms


def needs(settings):
    return ddm.terms.style_needs(settings, cm=settings.style_ratio)  # statistics for L_CM


if __name__ == "__main__":
    ddm.recipe("DM_GramMatching", Settings, objective, needs)
