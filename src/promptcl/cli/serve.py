"""The command `serve`: a page and an HTTP interface for a learner. Heavy imports wait inside."""

from __future__ import annotations

from typing import Annotated

import typer

from promptcl.cli.errors import one_sentence, printable
from promptcl.cli.learn import open_or_make
from promptcl.cli.options import DEFAULT, Settings, Store, Trust, extra
from promptcl.cli.terminal import count
from promptcl.config.reading import check_settings_of_learning
from promptcl.errors import UserError

app = typer.Typer()


@app.command()
@one_sentence
def serve(
    store: Store,
    settings: Settings = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; one of others needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8765,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Recipe of a new learner (promptcl list recipes).", show_default=DEFAULT),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="PROMPTCL_TOKEN", help="What requests have to bring; made where another host needs one."
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Answer only; nothing is learned or changed.")] = False,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    trust: Trust = False,
) -> None:
    """Open a page on which STORE learns, answers and is corrected; programs use the same address. STORE may be new."""
    check_settings_of_learning(settings or [])
    with extra("serve", "starlette", "uvicorn", "python_multipart"):
        from promptcl.serve import running
    from promptcl import store as stores
    from promptcl.serve.house import House

    address = running.checked(running.Address(host, port, token))
    # Before the learner is loaded, which takes seconds.
    with running.bound(address) as listening:
        if read_only and stores.checksum(store) is None:
            raise UserError(f"{store} has no learner, and --read-only makes none; write promptcl learn {store} FOLDER")
        changed = list(settings or [])
        knows = stores.checksum(store) is not None and bool(stores.load(store, trust=trust).classes)
        if not read_only and (recipe is not None or not knows):
            with stores.lock(store):
                open_or_make(store, changed, recipe, trust)
        # A new one was made with the settings, and keeps them.
        house = House(store, changed if knows else [], trust, read_only)
        known = house.keeper.known.learner
        print(printable(f"{store}: {count(len(known.classes), 'class')}, {known.config.method['name']}"))
        print(f"open {running.urls(address, listening.getsockname()[1])}")
        print("Ctrl-C ends it", flush=True)
        running.run(house, address, listening, opens)
