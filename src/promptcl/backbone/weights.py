"""Find, hash, check and load weight files of a timm ViT. Downloaded and given files are treated the same."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from timm.models import clean_state_dict, eva, vision_transformer

from promptcl.errors import UserError
from promptcl.runtime import disk, packed

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
EMBEDDED = Path(__file__).parents[1] / "assets" / "demo_vit.safetensors"
_MOST_BYTES = 2**36  # of a weight file
_HEADS = ("head.", "head_dist.", "fc.", "pre_logits.")  # classifiers of the pre-training task: never used here
# The first four in the order of timm.models.load_state_dict; of several copies the averaged one is meant.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "ema", "teacher", "student")
_TELLING = ("cls_token", "patch_embed.proj.weight")  # what stands before these stands before all names of a ViT
_NPZ_ROOTS = ("", "opt/target/", "params/", "params/img/")  # the layouts timm's npz reader knows
_NPZ_NAMES = ("cls", "embedding", "Transformer", "pos_embedding", "head", "pre_logits", "MAPHead_0")


def locate(weights: str, name: str, hub: tuple[str, str] | None) -> Path:
    """Path of the weight file that `backbone.weights` means, downloaded if need be.

    Args: weights `hub`, `embedded` or a path; name of the timm model; hub (repository, file) of its published weights.
    Raises UserError where there is no such file, the suffix is unknown or the download fails.
    """
    if weights == "hub":
        return _download(name, hub)
    path = EMBEDDED if weights == "embedded" else disk.expanded(weights)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"backbone.weights={weights} is unknown: "
            f"expected hub, random, embedded or a file ending in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"backbone.weights={weights}: there is no file {path}, expected the weights of {name}")
    try:
        disk.check(path, _MOST_BYTES)
        packed.check_zip(path)
    except OSError as error:
        raise UserError(f"backbone.weights={weights} cannot be read ({error.strerror}): give a whole file") from error
    return path


def _download(name: str, hub: tuple[str, str] | None) -> Path:
    local = f"set backbone.weights to a local file ({', '.join(SUFFIXES)})"
    if hub is None:
        raise UserError(f"backbone.weights=hub: timm publishes no weights for {name}, {local} or to random")
    cached = try_to_load_from_cache(*hub)  # asks no server, so a machine without network does not wait for retries
    if isinstance(cached, str):
        return Path(cached)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # retries are not worth a line each
    try:
        get_hf_file_metadata(hf_hub_url(*hub))  # asks once; without network the download would ask for half a minute
        return Path(hf_hub_download(*hub))
    except Exception as error:  # network, proxy, disk, permission: each has its own type
        reason = textwrap.shorten(first_line(error), 80, placeholder="...")
        raise UserError(
            f"{hub[1]} of {hub[0]} could not be downloaded ({reason}): {local}, or take what needs no download, "
            "promptcl learn --recipe grow-demo or promptcl train demo"
        ) from error


def first_line(error: Exception) -> str:
    """First line of an error, short enough to stand inside a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensors_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the sorted state dict: for weights that come from no file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load(model: Any, path: Path, name: str, resample_patches: bool = False) -> None:
    """Load a file into a headless VisionTransformer or Eva of timm; position embeddings are resampled to its grid.

    Every name and shape must fit, only the classifier of the pre-training is left out. Patch kernels of another size
    are refused unless `resample_patches`: timm would resample them silently, and that is usually the wrong file.
    Raises UserError naming the file and the first name that does not fit, or why the file cannot be read.
    """
    if path.suffix == ".npz":
        _load_npz(model, path, name, resample_patches)
        return
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = _unwrapped(_read(path), path, list(shapes))
    _check_dense(path, state)
    patches, wanted = _shape(state.get("patch_embed.proj.weight")), shapes["patch_embed.proj.weight"]
    _check_size(path, name, patches[:1], wanted[:1], "width")
    if not resample_patches:
        _check_size(path, name, patches[2:], wanted[2:], "patches of")
    try:
        if isinstance(model, eva.Eva):
            fitted = eva.checkpoint_filter_fn(dict(state), model)
        else:  # the arguments are the ones timm itself gives for deit and flexivit
            like: dict[str, Any] = {"interpolation": "bilinear", "antialias": False} if "flexi" in name else {}
            fitted = vision_transformer.checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True, **like)
    except Exception as error:  # a position embedding of another layout: a name may tell more than its shape
        _check_names(path, name, state, {**shapes, "pos_embed": _shape(state.get("pos_embed"))})
        raise UserError(
            f"{path} does not fit {name} at pos_embed {_shape(state.get('pos_embed'))} ({first_line(error)})"
        ) from error
    _check_names(path, name, fitted, shapes)
    model.load_state_dict({key: value for key, value in fitted.items() if key in shapes})
    _check_finite(path, model)


def _read(path: Path) -> Any:
    """What is in a .safetensors or torch file. Nothing in the file is ever executed."""
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            # Training scripts store their arguments; what torch warns of, such as sparse tensors, is refused below.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged or holds Python objects beside tensors, expected a plain state dict "
            "(save it again as .safetensors)"
        ) from error
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{path} cannot be read, expected a complete {path.suffix} weight file ({first_line(error)})"
        ) from error
    return content


def _unwrapped(content: Any, path: Path, names: list[str]) -> dict[str, Any]:
    """The tensors of the ViT by its own names, out of whatever a trainer has put around them and before the names.

    Where no part of the file has most of `names`, after a common prefix or without, the largest part as it is.
    Raises UserError where there are no tensors.
    """
    parts = list(_parts(content))
    if not parts:
        raise UserError(f"{path} holds a {type(content).__name__}, expected a state dict (names and tensors)")
    found, best = len(names) // 2, dict(clean_state_dict(max(parts, key=lambda part: len(part))))
    for part in parts:
        for prefix in {"": 0} | {key.removesuffix(end): 0 for key in part for end in _TELLING if key.endswith(end)}:
            inner = {key.removeprefix(prefix): value for key, value in part.items() if key.startswith(prefix)}
            if (count := sum(one in inner for one in names)) > found:
                found, best = count, inner
    return best


def _parts(content: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The dictionaries of tensors in a file, those first that trainers usually mean."""
    if not isinstance(content, dict) or depth > 3:
        return
    for key in sorted(content, key=lambda key: _WRAPPERS.index(key) if key in _WRAPPERS else len(_WRAPPERS)):
        yield from _parts(content[key], depth + 1)
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield tensors


def _check_dense(path: Path, state: dict[str, Any]) -> None:
    """Raise UserError for a tensor that does not hold its numbers one by one."""
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue
        odd = {"sparse": value.layout is not torch.strided, "on the meta device": value.is_meta}
        odd |= {"quantized": value.is_quantized, "complex": value.is_complex()}
        if kind := next((kind for kind, found in odd.items() if found), None):
            raise UserError(f"{path}: {key} is {kind}, expected a dense tensor of numbers; save it again as one")


def _check_finite(path: Path, model: Any) -> None:
    """Raise UserError where a number of the loaded model is NaN or infinite: so would every answer be."""
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} holds NaN or infinite numbers, expected finite ones; get the file again")


def _check_names(path: Path, name: str, state: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    hint = "set backbone.name (and backbone.kwargs) to the model of this file"
    if 2 * sum(key in state for key in shapes) < len(shapes):
        theirs, ours = (", ".join(list(names)[:3]) for names in (state, shapes))
        raise UserError(
            f"{path} has other names than {name}, {theirs}, where {ours} are expected, with any common prefix: {hint}, "
            "or save it with timm's names"
        )
    for key in shapes:
        if key not in state:
            raise UserError(f"{path} lacks {key}, which {name} needs: {hint}")
    for key in state:
        if key not in shapes and not key.startswith(_HEADS):
            raise UserError(f"{path} holds {key}, which {name} does not have: {hint}")
    for key, shape in shapes.items():
        if _shape(state[key]) != shape:
            raise UserError(f"{path}: {key} has shape {_shape(state[key])}, {name} has {shape}: {hint}")


def _check_size(path: Path, name: str, given: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
    if given and given != expected:
        file, model = ("x".join(map(str, size)) for size in (given, expected))
        raise UserError(f"{path} holds {what} {file}, {name} has {model}: set backbone.name to the model of this file")


def _load_npz(model: Any, path: Path, name: str, resample_patches: bool) -> None:
    """Load a JAX archive of google-research/vision_transformer with timm, and check what timm lets pass."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            _check_npz(archive, model, path, name, resample_patches)
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))  # what the file lacks stays NaN, and is found below
        model.load_pretrained(str(path))
        for key, value in model.state_dict().items():
            if value.isnan().any():
                raise UserError(f"{path} has no value for {key} of {name}: set backbone.name to the model of this file")
        _check_finite(path, model)
    except UserError:
        raise
    except Exception as error:  # damaged archive, missing name, other shape
        raise UserError(f"{path} cannot be read as the JAX .npz weights of {name} ({first_line(error)})") from error


def _check_npz(archive: Any, model: Any, path: Path, name: str, resample_patches: bool) -> None:
    root = next((root for root in _NPZ_ROOTS if f"{root}embedding/kernel" in archive.files), None)
    if root is None:
        raise UserError(
            f"{path} lacks embedding/kernel, expected a ViT of google-research/vision_transformer such as ViT-B_16.npz"
        )
    names = [key.removeprefix(root) for key in archive.files if key.startswith(root)]
    kernel = archive[f"{root}embedding/kernel"].shape  # height, width, channels, model width
    _check_size(path, name, kernel[-1:], (model.embed_dim,), "width")
    if not resample_patches:
        _check_size(path, name, kernel[:2], tuple(model.patch_embed.patch_size), "patches of")
    for key in names:
        if key.split("/")[0] not in _NPZ_NAMES:
            raise UserError(
                f"{path} holds {key}, which {name} does not have: set backbone.name to the model of this file"
            )
    numbers = {int(match[1]) for key in names if (match := re.match(r"Transformer/encoderblock_(\d+)/", key))}
    if numbers:
        _check_size(path, name, (len(numbers),), (len(model.blocks),), "blocks:")
    query = f"{root}Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    if query in archive.files:  # flattened by timm, so another number of heads would pass
        _check_size(path, name, archive[query].shape[1:2], (model.blocks[0].attn.num_heads,), "attention heads:")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
