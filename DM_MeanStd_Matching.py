"""Style matching by channel moments: L_MMD + style_ratio * L_MM (DDM, WACV 2025).

    python DM_MeanStd_Matching.py --dataset CIFAR10 --ipc 10

The content is the mean embedding (DM). The style is the mean and standard deviation of each channel of the batch-mean
feature map at each tap.
"""

import ddm
from ddm.methods.settings import StyleSettings
from ddm.settings import altered, non_negative, setting


class Settings(StyleSettings, ddm.RecipeSettings):
    model: str = altered(ddm.RecipeSettings, "model", default="ConvNet_gram")
    style_ratio: float = setting(10000.0, "weight of L_MM; 0 is plain DM", check=non_negative, group="objective")


def objective(real, syn, settings):
    terms = {"L_MMD": ddm.losses.mean_matching(real.embedding, syn.embedding)}  # || mean_R phi - mean_S phi ||^2
    if settings.style_ratio:
        terms["L_MM"] = settings.style_ratio * ddm.terms.moments(real, syn, settings)  # lambda * alpha * L_MM
    return terms


def needs(settings):
    return ddm.terms.style_needs(settings, mm=settings.style_ratio)  # statistics for L_MM


if __name__ == "__main__":
    ddm.recipe("DM_MeanStd_Matching", Settings, objective, needs)
