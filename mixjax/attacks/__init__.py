"""Attacks on what the server sees of a round."""

from mixjax.attacks import channels as channels
from mixjax.attacks import couplings as couplings
from mixjax.attacks import crafted as crafted
from mixjax.attacks import flooding as flooding
from mixjax.attacks import learned as learned
from mixjax.attacks import lira as lira
from mixjax.attacks import membership as membership
from mixjax.attacks import shadows as shadows
from mixjax.attacks import sim as sim
from mixjax.attacks import source as source
from mixjax.attacks import tracks as tracks
from mixjax.attacks import unmix as unmix
from mixjax.attacks.base import Attack as Attack
from mixjax.attacks.base import Probe as Probe

__all__ = [
    "Attack",
    "Probe",
    "channels",
    "couplings",
    "crafted",
    "flooding",
    "learned",
    "lira",
    "membership",
    "shadows",
    "sim",
    "source",
    "tracks",
    "unmix",
]
