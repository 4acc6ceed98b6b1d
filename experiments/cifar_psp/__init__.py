"""Learned structure parameters (PSP) on CIFAR."""
