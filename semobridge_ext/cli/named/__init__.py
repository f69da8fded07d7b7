"""Data sets by name: torchvision's folders on disk, Hugging Face's, and CoOp's split files."""
