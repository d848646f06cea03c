"""Criteria by name. A new one is one file and one line here."""

from compress.pruning.bn_scale import BN_SCALE
from compress.pruning.criterion import Criterion
from compress.pruning.magnitude import MAGNITUDE
from compress.pruning.taylor import TAYLOR

CRITERIA: dict[str, Criterion] = {"magnitude": MAGNITUDE, "bn-scale": BN_SCALE, "taylor": TAYLOR}
