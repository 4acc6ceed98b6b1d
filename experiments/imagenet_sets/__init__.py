"""Prepare ImageNet for tensorflow-datasets."""
