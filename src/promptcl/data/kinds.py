"""Which files are images, by their names: those that are read, those that only look like one, those that never are."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence

from PIL import features

_AVIF = features.check("avif")
HEIF_ENDINGS = (".heic", ".heif", ".hif")
_HEIF = importlib.util.find_spec("pillow_heif") is not None
if _HEIF:
    import pillow_heif

    pillow_heif.register_heif_opener()

ENDINGS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *((".avif",) if _AVIF else ()),
    *(HEIF_ENDINGS if _HEIF else ()),
)
"""Endings of the files that are read as images, in lower case."""
KINDS = f"png, jpg, webp, bmp, gif, tiff{', avif' if _AVIF else ''}{', heic' if _HEIF else ''} or ppm"
# Nothing else is tried, whatever a file is called: Pillow's reader of EPS, for one, starts Ghostscript.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM"),
    *(("AVIF",) if _AVIF else ()),
    *(("HEIF",) if _HEIF else ()),
)
"""Pillow's names of what the content of a file may be."""
_OTHERS = {
    *(".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".jpm", ".jxl", ".jxr", ".wdp", ".hdp", ".jls", ".jng", ".mng", ".svg", ".svgz", ".eps", ".psd", ".psb", ".xcf"),
    *(".kra", ".ico", ".cur", ".icns", ".tga", ".pcx", ".dds", ".exr", ".hdr", ".pfm", ".pam", ".sgi", ".rgb", ".ras"),
    *(".xbm", ".xpm", ".qoi", ".flif", ".bpg", ".dcm", ".dicom", ".nii", ".fits", ".fit", ".czi", ".lif", ".nd2"),
    *(".svs", ".ndpi", ".mrxs", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf"),
    *(".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq", ".kdc", ".rwl", ".x3f", ".insp", ".emf", ".wmf"),
}
_NEVER = {
    *("__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # macOS
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "msocache"),  # Windows
    *("system volume information", "picasa.ini", "zbthumbnail.info"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),  # network drives
    *("lost+found", "lost.dir", "__pycache__", "_svn", "_darcs"),
}
_NEVER_ENDS = (":zone.identifier", ":encryptable", "@synoeastream", "@synoresource")
_NEVER_EMPTY = {"cvs", "rcs", "sccs", "recycler", "recycled", "found.000"}  # may be classes, where images are in them


def is_image(path: str) -> bool:
    """Whether a path ends like an image that is read."""
    return path.lower().endswith(ENDINGS)


def other_kind(path: str) -> str:
    """The ending of a file that looks like an image and is none that is read, such as `.jp2`; empty for all others."""
    name = path.rpartition("/")[2].lower()
    ending = name[name.rfind(".") :] if "." in name else ""
    return ending if ending in _OTHERS and ending not in ENDINGS else ""


def advice(path: str) -> str:
    """What to do about a file that does not decode, as the end of a sentence."""
    if other_kind(path) in HEIF_ENDINGS:
        return "pip install 'promptcl[heif]' to read photos of this kind"
    return f"replace it by a {KINDS}, or remove it"


def never(name: str) -> bool:
    """Whether a file or folder of this name is left behind by a file manager, a network drive or a tool, or hidden."""
    folded = name.casefold()
    return name.startswith((".", "~$")) or folded in _NEVER or folded.endswith(_NEVER_ENDS)


def visible(paths: Iterable[str]) -> list[str]:
    """Those of the paths in which no part is `never` an image or a class; paths that end in `/` are folders."""
    seen: dict[str, bool] = {"": True}

    def shown(folder: str) -> bool:
        if folder not in seen:
            above, _, name = folder.rpartition("/")
            seen[folder] = shown(above) and not never(name)
        return seen[folder]

    kept = [path for path in paths if shown(path.rstrip("/").rpartition("/")[0]) and not never(_last(path))]
    return _without_tools(kept)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _without_tools(paths: list[str]) -> list[str]:
    """Leave out folders of tools whose names may be classes too, where no image is in them."""
    tools = {folder for path in paths for folder in _folders(path) if _last(folder).casefold() in _NEVER_EMPTY}
    if not tools:
        return paths
    used = {folder for path in paths if is_image(path) for folder in _folders(path)}
    return [path for path in paths if not any(folder in tools - used for folder in _folders(path))]


def _folders(path: str) -> list[str]:
    """All folders on the way to a file, or to a folder and itself, with `/` at their ends."""
    parts: Sequence[str] = path.split("/")
    return ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]


def heif_decoder() -> str:
    """Versions of what decodes HEIF and HEIC here, or `none`."""
    return str(pillow_heif.libheif_info()) if _HEIF else "none"
