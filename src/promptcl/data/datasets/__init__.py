"""One file a data set: `data.name=cifar100` means datasets/cifar100.py."""
