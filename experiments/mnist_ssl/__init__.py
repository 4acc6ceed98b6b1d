"""SSL on LeNet and an MLP."""
