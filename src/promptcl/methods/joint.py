"""Joint: the linear baseline shown all tasks at once, without a mask (same head, same budget).

The upper bound of any other method is the same command with tasks=1.
"""

from promptcl.methods import linear


class Model(linear.Model):
    """Linear head, all classes together."""

    joint = True
    rehearses = False
    use_mask = False
