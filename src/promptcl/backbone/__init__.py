"""The frozen ViT, and what may be put into it."""

from promptcl.backbone.inserts import Prompt
from promptcl.backbone.vit import Backbone, Features

__all__ = ["Backbone", "Features", "Prompt"]
