"""Folders that get and lose their places as a whole: nothing that is half there can be loaded.

Replacing a folder takes two renames. A process that dies between them leaves the old folder aside, and `restore` gives
it its place back.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def is_there(path: Path) -> bool:
    """Return whether there is anything at a path, also a link that leads nowhere."""
    return path.is_symlink() or path.exists()


def remove(path: Path) -> bool:
    """Remove a file, a folder or a link, and return whether there was one. Raises OSError."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    else:
        return False
    return True


def put_in_place(folder: Path, final: Path, aside: Path) -> None:
    """Move a folder to its final place; an older one lies `aside` afterwards.

    A process that has files of the old one open keeps them. Raises OSError, and then the old one has its place again.
    """
    try:
        if is_there(final):
            final.replace(aside)
        folder.replace(final)
    except BaseException:  # a signal, too
        restore(final, aside)
        raise


def restore(final: Path, aside: Path) -> None:
    """Give what lies aside its place back, unless something else has it. Raises OSError."""
    if is_there(aside) and not is_there(final):
        final.parent.mkdir(exist_ok=True)
        aside.replace(final)
