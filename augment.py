"""The augmentations under the name of this project's version 0.1.0, handed on from ddm."""

from ddm.augment import *  # noqa: F403
from ddm.compat import augment, get_daparam  # noqa: F401
