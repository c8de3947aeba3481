"""The complete objective of DDM (WACV 2025): content, style and intra-class diversity, every weight a flag.

    python DM_DDM.py --dataset CIFAR10 --ipc 10 --preset paper

    L_total = mmd_ratio * L_MMD + icd_ratio * L_ICD + mm_ratio * L_MM + cm_ratio * L_CM + rr_ratio * L_RR
        + ce_ratio * L_CE

In the paper's symbols: beta = icd_ratio, lambda * alpha = mm_ratio, lambda = cm_ratio. A weight of 0 removes a term and
its cost. L_RR and L_CE are off by default and not of the DDM paper. Sources: L_RR: RFAD (Loo et al., NeurIPS 2022), of
the family of KIP (Nguyen et al., 2021) and FRePo (Zhou et al., 2022); L_CE: IDM (Zhao et al., CVPR 2023).

The objective is in ddm/methods/objective.py; `ddm condense` is the same command.
"""

import ddm

if __name__ == "__main__":
    ddm.recipe("DM_DDM", ddm.DDMSettings)
