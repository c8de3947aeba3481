"""The augmentations under their module name of version 0.1.0, re-exported from ddm."""

from ddm.augment import *  # noqa: F403
from ddm.compat import augment, get_daparam  # noqa: F401
