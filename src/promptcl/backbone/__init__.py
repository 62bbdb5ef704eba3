"""The frozen ViT, and the inserts that methods put into it: tokens, prefixes and changes."""

from promptcl.backbone.inserts import Change, Insert, Inserts, Place, Prefix, Tokens
from promptcl.backbone.vit import Backbone, Feature, Features

__all__ = ["Backbone", "Change", "Feature", "Features", "Insert", "Inserts", "Place", "Prefix", "Tokens"]
