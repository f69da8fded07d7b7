"""Multi-label findings learned task after task: RE-tune-style adaptors, protocols, metrics, the report."""

from semobridge_ext.incremental.metrics import average_precision, roc_auc
from semobridge_ext.incremental.prompts import encode_findings
from semobridge_ext.incremental.protocols import Task, class_incremental, data_incremental, label_incremental
from semobridge_ext.incremental.re_tune import RETune
from semobridge_ext.incremental.report import IncrementalReport, incremental_report

__all__ = [
    "IncrementalReport",
    "RETune",
    "Task",
    "average_precision",
    "class_incremental",
    "data_incremental",
    "encode_findings",
    "incremental_report",
    "label_incremental",
    "roc_auc",
]
