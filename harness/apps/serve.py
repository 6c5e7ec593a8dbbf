"""Serve vectors of pictures and texts over HTTP, in the shape of OpenAI's embeddings endpoint, by Ray Serve.

Ray Serve has the server, the queue, the replicas and the metrics. Here is what a replica does: it decodes as `embed`
does, beside the model, so that a picture that can't be read never enters a batch, and gathers batches of a few sizes.
"""

import asyncio
import base64
import contextlib
import re
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from ray import serve
from ray.serve.schema import ReplicaState  # type: ignore[attr-defined]
from starlette.exceptions import HTTPException

from harness.apps.vectors.decode import Item, prepare, stack
from harness.apps.vectors.embed import Encoder
from harness.apps.vectors.source import PictureFile
from harness.base.workers import cluster_address, ray_running, require_actors
from harness.datasets.images import count_pixels
from harness.measure.server import batch_sizes
from harness.records.times import cores
from zoo.core.errors import is_out_of_memory
from zoo.core.json_reader import strict_json
from zoo.core.settings import check_fields
from zoo.deploy.export import read_description
from zoo.deploy.setup import Setup

MOST = 2048  # inputs of a request, as OpenAI allows
MOST_PER_CORE = 4  # threads of a replica, or replicas
SENDING = 1024  # clients of a replica that still send their requests, beside those that wait
_ROUTE = re.compile(r"/[A-Za-z0-9._~/-]*")
EXPECTED = "a text, a picture as data:image/...;base64,..., or a list of these"
app = FastAPI(title="clip-patchrank")


@app.exception_handler(HTTPException)
async def refuse(_: Request, error: HTTPException) -> JSONResponse:
    """Answer with an error in OpenAI's shape."""
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"message": error.detail, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, error.status_code, error.headers)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a model is served."""

    replicas: int = 1  # Ray actors with the model each
    threads: int | None = None  # of each replica; None: this machine's cores shared among them
    batch: int = 16  # pictures and texts that the model takes at once
    wait_ms: float = 5.0  # that a batch waits for more
    queue: int = 128  # requests that wait for a replica; more get 503
    body_s: float = 30.0  # that a client may take to send a request
    body_mb: float = 64.0  # 1e6 bytes of a request
    megapixels: float = 500.0  # of all pictures of a request
    host: str = "127.0.0.1"
    port: int = 8000
    route: str = "/"  # what paths begin with
    device: str = "cpu"
    random_weights: bool = False

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("replicas", "threads", "batch", "queue"), "[1, inf)")
        bounds = dict.fromkeys(("body_s", "body_mb", "megapixels"), "(0, inf)")
        check_fields(self, **counts, **bounds, wait_ms="[0, inf)", port="[1, 65535]")
        if not _ROUTE.fullmatch(self.route):
            raise ValueError(
                f"--route {self.route!r}: expected a path that starts with '/', of letters, digits and -._~/"
            )
        require_actors("--replicas", self.replicas, self.device)
        if cluster_address() is None:
            for flag, value in (("--threads", self.cores), ("--replicas", self.replicas)):
                if value > MOST_PER_CORE * cores():
                    raise ValueError(f"{flag} {value}: this machine has {cores()} cores; expected fewer")

    @property
    def cores(self) -> int:
        """Threads of each replica."""
        return self.threads or max(1, cores() // self.replicas)


def read_query(content: bytes, kind: str, model: str, width: int) -> tuple[list[PictureFile | str], bool]:
    """Read the body of a request, whose content type is ``kind``, to a model whose vectors have a ``width``.

    Return pictures and texts, and whether their vectors are wanted as base64.

    Raises:
        ValueError: it is neither, or asks for what isn't offered.
        HTTPException: it asks for another model.
    """
    if kind.lower().startswith("image/"):
        return [PictureFile("input[0]", content=content)], False
    try:
        query = strict_json(content)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}); send the bytes of a picture with Content-Type: image/...") from error
    if not isinstance(query, dict) or "input" not in query:
        raise ValueError("the body has no field 'input': expected JSON as of OpenAI's embeddings")
    if query.get("model") not in (None, model):
        raise HTTPException(404, f"model {query['model']!r} isn't served here: expected {model!r}")
    inputs, form = query["input"], query.get("encoding_format") or "float"
    if form not in ("float", "base64"):
        raise ValueError(f"encoding_format {form!r}: expected 'float' or 'base64'")
    if query.get("dimensions") not in (None, width):
        raise ValueError(f"dimensions {query['dimensions']!r}: vectors aren't shortened; expected {width}")
    inputs = inputs if isinstance(inputs, list) else [inputs]
    if not 1 <= len(inputs) <= MOST:
        raise ValueError(f"input: expected {EXPECTED}, 1 to {MOST} of them")
    return [_read_input(f"input[{place}]", value) for place, value in enumerate(inputs)], form == "base64"


def _read_input(name: str, value: Any) -> PictureFile | str:
    if not isinstance(value, str):
        raise ValueError(f"{name} {str(value)[:40]!r}: expected {EXPECTED}")
    value = value.strip()  # as embed does with texts
    scheme = value[:8].lower()
    if scheme.startswith(("http://", "https://")) and len(value.split()) == 1:
        raise ValueError(f"{name}: addresses such as {value[:80]!r} aren't fetched; send the picture itself")
    if not scheme.startswith("data:"):
        return value
    head, comma, data = value.partition(",")
    if not (comma and head.lower().startswith("data:image/") and head.lower().endswith(";base64")):
        raise ValueError(f"{name} {head[:40]!r}: expected data:image/...;base64,...")
    try:
        return PictureFile(name, content=base64.b64decode("".join(data.split()), validate=True))
    except ValueError as error:
        raise ValueError(f"{name}: no base64 ({error})") from error


class Waiting(NamedTuple):
    """A picture or text that waits for the model."""

    item: Item
    vector: "asyncio.Future[Any]"  # (D,), or why there is none
    since: float  # seconds of the event loop's clock


@serve.deployment
@serve.ingress(app)
class VectorServer:
    """A replica: the model on its device, and threads that decode for it."""

    def __init__(self, setup: Setup, config: ServeConfig) -> None:
        torch.set_num_threads(config.cores)
        self.config, self.inside = config, 0  # requests that have arrived and wait for their answer
        self.sizes = batch_sizes(config.batch)
        options: dict[str, Any] = {"random_weights": config.random_weights, "device": config.device}
        self.encoder = Encoder(setup, batch=config.batch, sizes=self.sizes, **options)
        self.name, self.wait_s = setup.name, config.wait_ms / 1000
        self.decoders, self.computer = ThreadPoolExecutor(config.cores), ThreadPoolExecutor(1)
        budgets = self.encoder.budgets
        self.room = asyncio.Semaphore((1 + len(budgets)) * config.batch)  # pixels in memory
        self.waiting, self.arrival = [deque[Waiting]() for _ in budgets], asyncio.Event()  # of each budget
        self.batches: asyncio.Task[None] | None = None

    @app.post("/v1/embeddings")
    async def embeddings(self, request: Request) -> JSONResponse:
        """Embed pictures and texts; if one of them can't be, the answer is 400 and says which and why."""
        content, kind = await self._body(request), request.headers.get("content-type", "")
        if self.inside >= self.config.queue + 2 * self.config.batch:
            raise HTTPException(503, f"{self.inside} requests wait already; ask again later")
        run = asyncio.get_running_loop().run_in_executor
        self.inside += 1
        try:
            inputs, packed = await run(self.decoders, self._read, content, kind)
            results: list[Any] = await asyncio.gather(*(self._vector(entry) for entry in inputs))
        except (ValueError, MemoryError, RuntimeError) as error:  # the batch overflows, or takes too much memory
            short = is_out_of_memory(error.__cause__ or error)
            raise HTTPException(503 if short else 500, str(error)) from error
        finally:
            self.inside -= 1
        if wrong := [f"input[{place}]: {why}" for place, why in enumerate(results) if isinstance(why, str)]:
            raise HTTPException(400, "; ".join(wrong))
        values = [base64.b64encode(row.tobytes()).decode() if packed else row.tolist() for row in results]
        data = [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(values)]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # clients ask for the field; nothing is counted
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    @app.get("/v1/models")
    def models(self) -> dict[str, Any]:
        """Describe the model."""
        kinds = ["image", "text"] if self.encoder.has_text else ["image"]
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "clip-patchrank"}
        model |= {"dimensions": self.encoder.width, "modalities": kinds}
        model |= {"runtime": self.encoder.runtime, "precision": self.encoder.setup.precision}
        return {"object": "list", "data": [model]}

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request; raise HTTPException if it is too long, or takes too long to arrive."""
        most, seconds, parts = self.config.body_mb * 1e6, self.config.body_s, bytearray()
        close = {"connection": "close"}
        long = HTTPException(413, f"the request is longer than {self.config.body_mb:g} MB; send several", close)
        if int(request.headers.get("content-length", 0)) > most:
            raise long
        try:
            async with asyncio.timeout(seconds):
                async for part in request.stream():
                    parts += part
                    if len(parts) > most:
                        raise long
        except TimeoutError as error:
            late = f"the request hadn't arrived after {seconds:g} s; send less at once"
            raise HTTPException(408, late, close) from error
        return bytes(parts)

    def _read(self, content: bytes, kind: str) -> tuple[list[PictureFile | str], bool]:
        """Read the body of a request for this model; raise HTTPException for a body that it doesn't take."""
        try:
            inputs, packed = read_query(content, kind, self.name, self.encoder.width)
            if any(isinstance(entry, str) for entry in inputs):
                _ = self.encoder.clip
            pixels = sum(count_pixels(entry.read()) for entry in inputs if isinstance(entry, PictureFile)) / 1e6
            if pixels > self.config.megapixels:
                raise ValueError(
                    f"the pictures have {pixels:,.0f} megapixels together; expected at most "
                    f"{self.config.megapixels:g}: send several requests, or smaller pictures"
                )
        except (ValueError, FileNotFoundError) as error:
            raise HTTPException(400, str(error)) from error
        return inputs, packed

    async def _vector(self, entry: PictureFile | str) -> NDArray[np.float32] | str:
        """Return the vector (D,) of a picture or text, or why there is none."""
        async with self.room:
            if isinstance(entry, str):
                item = Item(entry)
            else:
                run = asyncio.get_running_loop().run_in_executor
                [item] = (await run(self.decoders, prepare, [entry], self.encoder.transform)).items
            if item.wrong:
                return item.wrong
            loop = asyncio.get_running_loop()
            vector: asyncio.Future[Any] = loop.create_future()
            budget = await loop.run_in_executor(self.computer, self._assign, item)
            self.waiting[budget].append(Waiting(item, vector, loop.time()))
            self.arrival.set()
            if self.batches is None or self.batches.done():  # none runs
                self.batches = asyncio.create_task(self._run_batches())
            result: NDArray[np.float32] | str = await vector
            return result

    async def _run_batches(self) -> None:
        """Embed pictures and texts, from any requests, as long as some wait.

        A batch is the largest of the fixed sizes that they fill, so that the model computes nothing in vain; the others
        go into the next batch, which gathers meanwhile. All have the budget of the first that waited, unless those of
        another fill a batch before. Ray's own batches would take whatever number waits.
        """
        loop = asyncio.get_running_loop()
        while any(self.waiting):
            waiting = [budget for budget, queue in enumerate(self.waiting) if queue]
            budget = min(waiting, key=lambda budget: self.waiting[budget][0].since)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self.waiting[budget][0].since + self.wait_s):
                    while not (full := [b for b, queue in enumerate(self.waiting) if len(queue) >= self.sizes[-1]]):
                        self.arrival.clear()
                        await self.arrival.wait()
                    budget = full[0]
            queue = self.waiting[budget]
            size = max(size for size in self.sizes if size <= len(queue))
            batch = [queue.popleft() for _ in range(size)]
            compute = partial(self._compute, [one.item for one in batch], budget)
            try:
                vectors = await loop.run_in_executor(self.computer, compute)
            except Exception as error:
                for one in batch:
                    if not one.vector.done():
                        one.vector.set_exception(error)
            else:
                for one, vector in zip(batch, vectors, strict=True):
                    if not one.vector.done():  # as of a client that is gone
                        one.vector.set_result(vector)

    def _assign(self, item: Item) -> int:
        """Return the budget of a picture; 0 of a text, and where all pictures have one keep rate."""
        if item.pixels is None or self.encoder.adaptive is None:
            return 0
        return int(self.encoder.assign(torch.from_numpy(item.pixels[None])))

    def _compute(self, items: Sequence[Item], budget: int = 0) -> list[NDArray[np.float32] | str]:
        results = dict[int, NDArray[np.float32] | str]()
        pictures = [place for place, item in enumerate(items) if item.pixels is not None]
        if (pixels := stack([items[place] for place in pictures])) is not None:
            results.update(zip(pictures, self.encoder.pictures(torch.from_numpy(pixels), budget), strict=True))
        if texts := [place for place, item in enumerate(items) if item.pixels is None]:
            features, wrong = self.encoder.texts([items[place].name for place in texts])
            for row, place in enumerate(texts):
                results[place] = wrong[row] if row in wrong or features is None else features[row]
        return [results[place] for place in range(len(items))]


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=SENDING)
class HealthServer:
    """Answers whether a replica of an application runs, apart from the queue of its requests."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _request: Request) -> JSONResponse:
        """Say that a replica runs, or 503."""
        application = serve.status().applications.get(self.name)
        states = application.deployments["VectorServer"].replica_states if application else {}
        runs = states.get(ReplicaState.RUNNING, 0) > 0
        return JSONResponse({"status": "ok" if runs else "no replica runs"}, 200 if runs else 503)


@contextlib.contextmanager
def serving(setup: Setup, config: ServeConfig) -> Iterator[dict[str, str]]:
    """Serve a model as long as the body runs, here or on the cluster of ``RAY_ADDRESS``; yield its and Ray's addresses.

    Raises:
        ValueError: what the tower refuses, or why Ray can't start a replica.
        FileNotFoundError: no weights.
        OSError: another program has the port.
    """
    if cluster_address() is None and not ray.is_initialized():
        try:
            socket.create_server((config.host, config.port)).close()
        except OSError as error:
            where = f"{config.host}:{config.port}"
            raise OSError(f"can't listen at {where}: {error.strerror}; use another --host or --port") from error
    # What is missing here is said in one sentence.
    if setup.file is None:
        setup.load(random_weights=config.random_weights)
    else:
        read_description(setup.file)
    # The same threads as are asked of Ray, on whatever machine.
    setup, config = setup.absolute(), replace(config, threads=config.cores)
    name = f"patchrank{config.route.rstrip('/').replace('/', '-')}"  # of the application
    logs = {"log_level": "ERROR", "enable_access_log": False}
    gpus = 1 if config.device.startswith("cuda") else 0
    replica: Any = VectorServer
    health: Any = HealthServer
    deployment = replica.options(
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cores, "num_gpus": gpus},
        max_ongoing_requests=2 * config.batch + config.queue + SENDING,
        max_queued_requests=config.queue,
        logging_config=logs,
    )
    with ray_running(config.replicas * config.cores):
        serve.start(http_options={"host": config.host, "port": config.port}, logging_config=logs)
        try:
            try:
                serve.run(health.bind(name), name=f"{name}-health", route_prefix=f"{config.route.rstrip('/')}/health")
                serve.run(deployment.bind(setup, config), name=name, route_prefix=config.route)
            except RuntimeError as error:
                raise ValueError(f"Ray can't serve {setup.name}: {error}") from error
            node = next(node for node in ray.nodes() if node["Alive"])
            yield {
                "url": f"http://{config.host}:{config.port}{config.route.rstrip('/')}",
                "metrics": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
            }
        finally:
            serve.delete(name)
            serve.delete(f"{name}-health")
