"""The pages and what they load: the studio at /, the bare player at /view/{stream}, everything else under /static/."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from .files import File, file
from .whip import STREAMS

STATIC = Path(__file__).resolve().parents[2] / "static"


def routes(static: Path) -> list[web.RouteDef]:
    async def studio(request: web.Request) -> File:
        return await file(static / "index.html")

    async def view(request: web.Request) -> File:
        request.app[STREAMS].find(request.match_info["stream"])  # refuses a bad name
        return await file(static / "view.html")

    async def asset(request: web.Request) -> File:
        return await file(_inside(static, request.match_info["path"]))

    return [web.get("/", studio), web.get("/view/{stream}", view), web.get("/static/{path:.+}", asset)]


def _inside(folder: Path, name: str) -> Path:
    """The file of that name; 404 for what does not exist or lies elsewhere."""
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, ValueError):  # no file can have that name: it is too long, or holds a NUL
        pass
    raise web.HTTPNotFound
