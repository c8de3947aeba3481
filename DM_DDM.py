"""The complete objective of DDM (WACV 2025): content, style and intra-class diversity, every weight a flag.

    python DM_DDM.py --dataset CIFAR10 --ipc 10 --preset paper

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM + rr_ratio * L_RR

In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. L_RR is not of the paper and off
by default; its source is RFAD (Loo et al., NeurIPS 2022). A weight of 0 removes its term and its cost. The objective is
in ddm/methods/objective.py; `ddm condense` is the same command.
"""

import ddm


def objective(real, syn, settings):
    return ddm.terms.objective(real, syn, settings)


def needs(settings):
    return ddm.terms.needs(settings)


def settle(settings):
    return ddm.terms.settle(settings)


if __name__ == "__main__":
    ddm.recipe("DM_DDM", ddm.DDMSettings, objective, needs, settle)
