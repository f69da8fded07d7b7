"""SeMoBridge's closed-form map."""

from semobridge_ext.bridging.bridge_module import Bridge
from semobridge_ext.bridging.default import bridge, use

__all__ = ["Bridge", "bridge", "use"]
