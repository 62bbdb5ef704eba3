"""The frozen ViT, and the inserts that methods put into it: tokens, prefixes, changes and weights."""

from promptcl.backbone.inserts import Change, Insert, Inserts, Matrix, Place, Prefix, Tokens, Weight
from promptcl.backbone.vit import Backbone, Feature, Features

__all__ = [
    "Backbone",
    "Change",
    "Feature",
    "Features",
    "Insert",
    "Inserts",
    "Matrix",
    "Place",
    "Prefix",
    "Tokens",
    "Weight",
]
