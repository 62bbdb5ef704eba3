"""The frozen ViT, and what may be put into it."""

from promptcl.backbone.inserts import Change, Insert, Inserts, Place, Prefix, Tokens
from promptcl.backbone.vit import Backbone, Features

__all__ = ["Backbone", "Change", "Features", "Insert", "Inserts", "Place", "Prefix", "Tokens"]
