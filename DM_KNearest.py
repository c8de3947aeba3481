"""Intra-class diversity: L_MMD + icd_ratio * L_ICD (DDM, WACV 2025).

    python DM_KNearest.py --dataset CIFAR10 --ipc 10

The content is the mean embedding (DM). The diversity term increases the KL divergence of each synthetic image from the
mean of its k nearest neighbours in the same class.
"""

import ddm
from ddm.methods.settings import DiversitySettings
from ddm.settings import non_negative, setting


class Settings(DiversitySettings, ddm.RecipeSettings):
    icd_ratio: float = setting(10.0, "weight of L_ICD; 0 is plain DM", check=non_negative, group="objective")


def objective(real, syn, settings):
    terms = {"L_MMD": ddm.losses.mean_matching(real.embedding, syn.embedding)}  # || mean_R phi - mean_S phi ||^2
    if settings.icd_ratio:
        terms["L_ICD"] = settings.icd_ratio * ddm.terms.diversity(real, syn, settings)  # beta * -KL(phi || m)
    return terms


def needs(settings):
    return ddm.terms.Needs(captured=settings.icd_form != "spread")  # its eigh waits for the device


def settle(settings):
    return ddm.terms.settle_neighbours(settings, settings.icd_ratio)  # default: k = 0.2 * ipc


if __name__ == "__main__":
    ddm.recipe("DM_KNearest", Settings, objective, needs, settle)
