"""What a map does to features, with confidence intervals."""

from semobridge_ext.diagnostics.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
