"""Prompt learning: learned rows for a frozen text tower, from labels (CoOp) or from a teacher (KDPL)."""

from semobridge_ext.prompts.coop import CoOp
from semobridge_ext.prompts.kdpl import KDPL

__all__ = ["KDPL", "CoOp"]
