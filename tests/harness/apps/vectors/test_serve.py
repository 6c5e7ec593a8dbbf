"""A real Ray Serve gives embed's vectors, and every client learns what it refused, shed or lost."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest
import requests
import torch
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("fastapi")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own use of pydantic
    from starlette.exceptions import HTTPException

    from harness.apps.serve import MOST, ServeConfig, VectorServer, Waiting, serving
from harness.apps.vectors.embed import Encoder, embed, read_vectors
from harness.apps.vectors.settings import EmbedJob
from harness.apps.vectors.source import TextSource, open_source
from harness.base.terminal import Progress
from zoo.deploy.runtime import Prepared
from zoo.deploy.setup import Setup

SETUP = Setup.of("clip_vit_s14_rankmerge60")
TEXTS = ["a photo of a dress", "a photo of a bag"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's, of its own
]


class Server(NamedTuple):
    url: str
    pictures: list[str]  # as data URLs
    wanted: NDArray[np.float32]  # embed's vectors, of pictures and then of TEXTS


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def ask(url: str, inputs: Any, **more: Any) -> requests.Response:
    return requests.post(f"{url}/v1/embeddings", json={"input": inputs, **more}, timeout=60)


def vectors_of(answer: requests.Response) -> NDArray[np.float32]:
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


def embedded(source: Any, out: Path) -> NDArray[np.float32]:
    how: dict[str, Any] = {"storage": "float32", "decoders": 0, "batch": 4}
    embed(EmbedJob(setup=SETUP, source=source, out=out, **how), Progress())
    return np.concatenate([shard.embeddings for shard in read_vectors(out)])


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(
    cluster: None, port: int, draw: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Two replicas that take four at a time, in front of which eight requests may wait."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "in").mkdir()
    contents = [draw(number) for number in range(6)]
    for number, content in enumerate(contents):
        (folder / "in" / f"{number}.png").write_bytes(content)
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    wanted = [embedded(open_source([str(folder / "in")]), folder / "pictures")]
    wanted.append(embedded(TextSource(folder / "texts.txt"), folder / "texts"))
    bounds: dict[str, Any] = {"body_s": 4, "body_mb": 1, "megapixels": 2}
    config = ServeConfig(replicas=2, threads=1, batch=4, wait_ms=20, queue=8, port=port, **bounds)
    with serving(SETUP, config) as served:
        yield Server(served["url"], [data_url(content) for content in contents], np.concatenate(wanted))


@pytest.mark.command("serve")
def test_vectors_are_those_of_embed(server: Server, draw: Callable[..., bytes]):
    answer = ask(server.url, [TEXTS[1], *server.pictures, TEXTS[0]], model=SETUP.name)
    got = vectors_of(answer)
    np.testing.assert_allclose(got, server.wanted[[7, 0, 1, 2, 3, 4, 5, 6]], atol=1e-5)
    assert [one["index"] for one in answer.json()["data"]] == list(range(8))
    [packed] = ask(server.url, server.pictures[0], encoding_format="base64", dimensions=256).json()["data"]
    vector = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    np.testing.assert_allclose(vector, server.wanted[0], atol=1e-5)
    raw = {"data": draw(0), "headers": {"Content-Type": "Image/PNG"}, "timeout": 60}
    answer = requests.post(f"{server.url}/v1/embeddings", **raw)
    np.testing.assert_allclose(vectors_of(answer), server.wanted[:1], atol=1e-5)
    [model] = requests.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert (model["id"], model["dimensions"], model["modalities"]) == (SETUP.name, 256, ["image", "text"])
    assert requests.get(f"{server.url}/v1", timeout=60).json()["error"]["message"] == "Not Found"


CUT = b"\x89PNG\r\n\x1a\n cut"


@pytest.mark.parametrize(("body", "status", "match"), [
    ({"input": []}, 400, f"1 to {MOST}"),
    ({"input": [[1, 2]]}, 400, "input[0] '[1, 2]': expected a text, a picture"),
    ({"inputs": "a"}, 400, "no field 'input'"),
    ({"input": "a", "model": "gpt"}, 404, "'gpt' isn't served here"),
    ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format 'int8'"),
    ({"input": "a", "dimensions": 8}, 400, "dimensions 8"),
    ({"input": "https://x.org/a.png"}, 400, "aren't fetched"),
    ({"input": "data:image/png;base64,é"}, 400, "input[0]: no base64"),
    ({"input": "data:text/plain,a"}, 400, "expected data:image/...;base64"),
    ({"input": " "}, 400, "input[0]: the text is empty"),
    ({"input": ["a dress", "xylophone"]}, 400, "input[1]: the embedded text tower never saw"),
    ({"input": ["a dress", data_url(CUT)]}, 400, "input[1]: it can't be read"),
])  # fmt: skip
def test_bad_requests(server: Server, body: Any, status: int, match: str):
    answer = requests.post(f"{server.url}/v1/embeddings", json=body, timeout=60)
    assert answer.status_code == status
    assert match in answer.json()["error"]["message"]


def test_broken_and_oversized_pictures_cost_others_nothing(server: Server, pictures: Path):
    bad = [data_url((pictures / name).read_bytes()) for name in ("bomb.png", "cut.jpg")]
    inputs = [server.pictures[0], bad[0], server.pictures[1], bad[1], server.pictures[2], bad[0]]
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda one: ask(server.url, one), inputs))
    assert [answer.status_code for answer in answers] == [200, 400] * 3
    assert "too large to be trusted" in answers[1].json()["error"]["message"]
    for number in range(3):
        np.testing.assert_allclose(vectors_of(answers[2 * number])[0], server.wanted[number], atol=1e-5)


def test_clients_that_never_finish_a_request_take_no_places_and_are_told(server: Server, port: int):
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(60)]
        for one in slow:
            one.sendall(head)
        assert requests.get(f"{server.url}/health", timeout=3).json() == {"status": "ok"}
        np.testing.assert_allclose(vectors_of(ask(server.url, server.pictures[0]))[0], server.wanted[0], atol=1e-5)
        answer = b"".join(iter(lambda: slow[0].recv(4096), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the request hadn't arrived after 4 s" in answer


def test_a_request_has_a_length_and_its_pictures_a_size(server: Server):
    Image.new("1", (1_000, 1_000)).save(sink := io.BytesIO(), "png")
    answer = ask(server.url, [data_url(sink.getvalue())] * 3)
    assert (answer.status_code, "3 megapixels together; expected at most 2" in answer.text) == (400, True)
    for body in (b"x" * 1_000_001, iter([b"x" * 600_000] * 2)):  # the second is sent without its length
        answer = requests.post(f"{server.url}/v1/embeddings", data=body, timeout=60)
        assert (answer.status_code, "longer than 1 MB" in answer.text) == (413, True)
    text = "a photo of a dress " * 40_000  # a tower reads its beginning
    assert ask(server.url, text).json()["data"] == ask(server.url, text[:2_000]).json()["data"]


def kill_a_replica() -> None:
    import ray

    names = [one for one in ray.util.list_named_actors(all_namespaces=True) if "VectorServer" in one["name"]]
    ray.kill(ray.get_actor(names[0]["name"], names[0]["namespace"]))


def test_a_killed_replica_loses_no_request_silently(server: Server):
    """Forty clients also are more than may wait, so some get 503."""
    statuses = Counter[int]()

    def client(number: int) -> None:
        for turn in range(5):
            if (number, turn) == (0, 1):
                kill_a_replica()
            place = (number + turn) % len(server.pictures)
            answer = ask(server.url, server.pictures[place])
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                np.testing.assert_allclose(vectors_of(answer)[0], server.wanted[place], atol=1e-5)

    with ThreadPoolExecutor(40) as clients:
        list(clients.map(client, range(40)))
    assert statuses.total() == 200
    assert statuses.keys() <= {200, 500, 503}
    assert statuses[200] >= 16  # how many more depends on the processor: 503 is answered at once
    assert statuses[503] > 0
    assert ask(server.url, server.pictures).status_code == 200


def test_a_tower_without_text_tower_takes_pictures_alone(tower: str):
    replica: Any = SimpleNamespace(name="tiny", encoder=Encoder(Setup.of(tower)), config=ServeConfig())
    read = partial(VectorServer.func_or_class._read, replica)
    assert len(read(json.dumps({"input": [data_url(CUT)]}).encode(), "application/json")[0]) == 1
    with pytest.raises(HTTPException, match=r"400: .* has no text tower"):
        read(json.dumps({"input": [data_url(CUT), "a dress"]}).encode(), "application/json")


OVERFLOW, NO_MEMORY = ValueError("embeddings overflowed"), ValueError("out of memory on cuda")
NO_MEMORY.__cause__ = torch.OutOfMemoryError()


@pytest.mark.parametrize(("error", "status"), [
    (OVERFLOW, 500), (NO_MEMORY, 503), (MemoryError(), 503), (RuntimeError("can't allocate memory"), 503),
])  # fmt: skip
def test_a_lack_of_memory_passes_and_an_overflow_does_not(error: Exception, status: int):
    read, vector = Mock(return_value=(["a"], False)), Mock(side_effect=error)
    replica = SimpleNamespace(
        decoders=None, _read=read, _vector=vector, _body=AsyncMock(), config=ServeConfig(), inside=0
    )
    request: Any = SimpleNamespace(headers={})
    with pytest.raises(HTTPException, match=str(status)):
        asyncio.run(VectorServer.func_or_class.embeddings(replica, request))


def test_a_batch_is_the_largest_size_that_those_who_wait_fill():
    computed = list[list[int]]()

    def compute(items: list[Any], budget: int) -> list[int]:
        assert budget == (items[0] < 0)
        computed.append(items)
        if items[0] == 7:
            raise ValueError("embeddings overflowed")
        return [-item for item in items]

    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()
        for budget, items in enumerate((range(8), range(-3, 0))):
            replica.waiting[budget].extend(Waiting(item, loop.create_future(), loop.time()) for item in items)
        vectors = [one.vector for queue in replica.waiting for one in queue]
        vectors[2].cancel()  # its client is gone
        await VectorServer.func_or_class._run_batches(replica)
        return await asyncio.gather(*vectors, return_exceptions=True)

    queues = [deque[Waiting](), deque[Waiting]()]
    replica: Any = SimpleNamespace(sizes=(1, 2, 4, 5), wait_s=0.0, waiting=queues, arrival=asyncio.Event())
    with ThreadPoolExecutor(1) as replica.computer:
        replica._compute = compute
        answers = asyncio.run(run())
    assert computed == [[0, 1, 2, 3, 4], [5, 6], [7], [-3, -2], [-1]]
    assert [answer for answer in answers if isinstance(answer, int)] == [0, -1, -3, -4, -5, -6, 3, 2, 1]
    assert str(answers[7]) == "embeddings overflowed"


@pytest.mark.parametrize("fixed", [False, True])
def test_every_batch_has_one_of_the_sizes_that_were_prepared(tower: str, fixed: bool, monkeypatch: pytest.MonkeyPatch):
    sizes, prepare = list[int](), Setup.prepare

    def noted(setup: Setup, vit: Any, example: torch.Tensor) -> tuple[Prepared, str]:
        prepared, why = prepare(setup, vit, example)

        def call(pixels: torch.Tensor) -> torch.Tensor:
            assert not fixed or len(pixels) == len(example)
            sizes.append(len(pixels))
            return prepared.call(pixels)

        return Prepared(call=call, batch=len(example) if fixed else None), why

    monkeypatch.setattr(Setup, "prepare", noted)
    encoder = Encoder(Setup.of(tower), batch=4, sizes=(1, 2, 4))
    assert sizes == [1, 2, 4]
    pixels = torch.randn(3, 3, 32, 32)
    np.testing.assert_allclose(encoder.pictures(pixels)[:1], encoder.pictures(pixels[:1]), atol=1e-5)
    assert sizes[3:] == [4, 1]


@pytest.mark.parametrize(("facts", "match"), [
    ({"queue": 0}, r"queue=0: expected an integer in \[1, inf\)"),  # which Ray refuses
    ({"port": 70_000}, r"port=70000: expected an integer in \[1, 65535\]"),
    ({"route": "x"}, "--route 'x': expected a path that starts with '/'"),
    ({"route": '/a b"\n'}, "--route .*: expected a path that starts with '/', of letters"),
    ({"threads": 100_000}, r"--threads 100000: this machine has \d+ cores"),
    ({"replicas": 500_000}, r"--replicas 500000: this machine has \d+ cores"),
    ({"device": "cuda:1"}, "--device 'cuda:1' with --replicas: say cuda"),
])  # fmt: skip
def test_settings_that_can_not_be(facts: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        ServeConfig(**facts)
