"""Textual and visual inversion."""

from semobridge_ext.inversion.inversion_map import InversionMap
from semobridge_ext.inversion.invert import oti, ovi
from semobridge_ext.inversion.spec import Inversion

__all__ = ["Inversion", "InversionMap", "oti", "ovi"]
