"""SSL on ImageNet."""
