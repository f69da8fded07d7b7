"""Generalized category discovery in a space of concepts: the spectral filter, the training,
the number of classes, the accuracy."""

from semobridge_ext.discovery.accuracy import GCDAccuracy, gcd_accuracy
from semobridge_ext.discovery.block_inputs import cache_block_inputs, load_block_inputs
from semobridge_ext.discovery.class_count import NumClassesEstimate, estimate_num_classes
from semobridge_ext.discovery.concepts import merge_concepts, read_concepts
from semobridge_ext.discovery.spectral_filter import SpectralFilter
from semobridge_ext.discovery.spectral_gcd import SpectralGCD

__all__ = [
    "GCDAccuracy",
    "NumClassesEstimate",
    "SpectralFilter",
    "SpectralGCD",
    "cache_block_inputs",
    "estimate_num_classes",
    "gcd_accuracy",
    "load_block_inputs",
    "merge_concepts",
    "read_concepts",
]
