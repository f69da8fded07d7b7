"""Mapped galleries for other engines: FAISS, cuVS, Lance and Milvus read what is written here."""

from semobridge_ext.handover.export import export_gallery

__all__ = ["export_gallery"]
