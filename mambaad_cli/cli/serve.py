"""mambaad serve."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mambaad_cli import MambaADError
from mambaad_cli.cli import running
from mambaad_cli.cli.app import LINE, command, examples
from mambaad_cli.cli.options import (
    DEFAULT_MODEL,
    Batch,
    Device,
    ModelFile,
    Precision,
    Res,
    Review,
    RoiDir,
    Runtime,
    Workers,
)
from mambaad_cli.cli.output import warn
from mambaad_cli.cli.watch import Renewing

if TYPE_CHECKING:
    from mambaad_cli.inspection.scorer import Scorer

LIMITS = "Limits"


@command(
    panel=LINE,
    epilog=examples(
        "mambaad serve",
        "mambaad serve --model parts.safetensors --port 9000",
        "MAMBAAD_TOKEN=… mambaad serve --host 0.0.0.0",
    ),
)
def serve(
    model: ModelFile = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; another than this machine's needs a token.")
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on. 0: any that is free.")
    ] = 8000,
    review: Review = None,
    roi_dir: RoiDir = None,
    res: Res = None,
    batch: Batch = 8,
    wait: Annotated[
        float, typer.Option(min=0, metavar="MS", help="Milliseconds that a photo waits for others at most.")
    ] = 5,
    workers: Workers = 2,
    queue: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Photos that may wait; more are answered by 503.", rich_help_panel=LIMITS
        ),
    ] = 64,
    max_bytes: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Largest body of a request.", rich_help_panel=LIMITS)
    ] = 64 * 2**20,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="Largest photo that is decoded.", rich_help_panel=LIMITS)
    ] = 100_000_000,
    device: Device = "auto",
    precision: Precision = "auto",
    runtime: Runtime = "auto",
) -> None:
    """Score photos that come over HTTP, and show a page for trying it. Ends with SIGTERM or Ctrl-C.

    If the environment variable MAMBAAD_TOKEN is set, requests must bring it: Authorization: Bearer TOKEN.
    """
    try:
        from mambaad_cli.serving import app as application
        from mambaad_cli.serving import batching, guard, server
        from mambaad_cli.serving.asked import Limits
        from mambaad_cli.serving.metrics import Metrics
    except ImportError as error:
        raise MambaADError(f"serve needs Starlette and uvicorn ({error}): pip install 'mambaad[serve]'") from error

    token = os.environ.get(guard.TOKEN, "").strip()
    if not token and not guard.is_loopback(host):
        raise MambaADError(f"--host {host} lets other machines in: set {guard.TOKEN} to a secret of your choice first")
    if not token.isascii() or any(not "!" <= letter <= "~" for letter in token):
        raise MambaADError(f"{guard.TOKEN} must be ASCII without spaces, such as openssl rand -hex 32 gives")
    listening = server.bound(host, port)

    def opened() -> "Scorer":
        regions = running.RegionOptions(roi_dir=roi_dir)
        scorer = running.open_model(model, device, res, precision, runtime, regions).scorer
        running.check_review(scorer.products, review)
        scorer.expecting(None)  # makes what the first photo would wait for
        return scorer

    renewing = Renewing(model, opened)
    options = batching.BatchOptions(batch, wait / 1000, queue, workers, review)
    batcher = batching.Batcher(opened(), options, Metrics(), renewing.scorer, warn)
    limits = Limits(max_bytes, max_pixels, max_photos=queue)
    listening.listen(server.BACKLOG)
    typer.echo(f"{model.name} answers at {server.address_of(listening)}; Ctrl-C ends it", err=True)
    try:
        server.run(application.build_app(batcher, limits, token), listening)
    finally:
        batcher.close()
        scored = batcher.metrics.images
        typer.echo(f"{scored} photos scored", err=True)
