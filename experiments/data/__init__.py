"""Image sets: CIFAR, MNIST, Fashion-MNIST, digits, ImageNet."""
