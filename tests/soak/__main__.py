"""`make soak`: a real server under mixed load for minutes, on too little memory, with faults.

Workers send random operations from a seed to a server with a small KV pool and small budgets for
prefixes, while the engine is killed every few minutes and hangs once. Every answer has to be one
that its operation allows, and to come in time. Greedy answers have to be those that the same
version gives alone. In the end nothing may run, nothing may be held, nothing may be lost, and
memory may not have grown. The exit code is 1 if any of this was violated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random

import httpx

from server.default_model import ensure_default_model
from server.settings import Settings
from tests.running_server import RunningServer, running_server
from tests.soak import administration, departures, generation, publishing
from tests.soak.alone import check_answers
from tests.soak.closing import check_quiet, check_released, check_store
from tests.soak.faults import Faults
from tests.soak.ledger import Ledger
from tests.soak.session import Session, run_bounded
from tests.soak.watch import Watch
from tests.soak.world import (
    CHATS,
    DEFINITIONS,
    JSON,
    SAFETENSORS,
    TAR,
    TASKS,
    TEMPORARY,
    TEXTS,
    Source,
    World,
    chat_source,
    text_source,
)

TOKEN_BYTES = 2 * 30 * 3 * 64 * 4
"""Keys and values of a token of SmolLM2-135M, in float32."""
NUM_KV_TOKENS, NUM_DEVICE_TOKENS, NUM_HOST_TOKENS = 1024, 288, 160
HANG_TIMEOUT_S = 30
"""Longer than any step on a busy machine."""
OPERATIONS = (
    (generation.ask_whole, 30),
    (generation.ask_streamed, 20),
    (publishing.upload, 8),
    (publishing.activate, 5),
    (publishing.roll_back, 2),
    (publishing.split, 3),
    (publishing.redefine, 3),
    (publishing.delete, 5),
    (publishing.download, 3),
    (publishing.verify, 1),
    (administration.move, 6),
    (administration.read, 5),
    (administration.send_bad, 3),
    (administration.turn_key, 1),
    (departures.leave_answer, 5),
    (departures.leave_stream, 4),
    (departures.leave_body, 2),
)
ASKING = generation.ask_whole.__module__
SCOPES = ("generate", "read", "write", "promote", "delete", "admin")


def main() -> int:
    options = parse()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    say(f"soak of {options.minutes:g} minutes, seed {seed}")
    model = ensure_default_model(Settings(_cli_parse_args=False).cache)
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="foreword-soak-") as folder:
        lines = soak(options, seed, model, Path(options.folder or folder), ledger)
    summarise(ledger, lines, seed)
    return 1 if ledger.num_violations else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("make soak ARGS=", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, help="of the operations; random by default")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--kill-every-s", type=float, default=150.0)
    parser.add_argument("--max-operation-s", type=float, default=120.0, help="then it hangs")
    parser.add_argument("--attention", default="ref", help="backend; with pages, so not cpu")
    parser.add_argument("--alone-minutes", type=float, default=60.0, help="at most, for that part")
    parser.add_argument("--folder", help="for stores and logs; by default one that is removed")
    return parser.parse_args()


def soak(
    options: argparse.Namespace, seed: int, model: Path, folder: Path, ledger: Ledger
) -> list[str]:
    """Run the load, then the checks that follow it. Returns lines of the report."""
    store = folder / "soak"
    common: tuple[str, ...] = (
        "--dtype",
        "float32",
        "--num-threads",
        "1",
        "--attention",
        options.attention,
    )
    common += ("--generation-config", "none", "--kv-cache-bytes", str(NUM_KV_TOKENS * TOKEN_BYTES))
    budgets: tuple[str, ...] = ("--device-prefix-bytes", str(NUM_DEVICE_TOKENS * TOKEN_BYTES))
    budgets += ("--host-prefix-bytes", str(NUM_HOST_TOKENS * TOKEN_BYTES))
    small: tuple[str, ...] = (
        "--max-num-seqs",
        "12",
        "--max-num-batched-tokens",
        "128",
        "--max-waiting",
        "24",
    )
    small += ("--engine-hang-timeout-s", str(HANG_TIMEOUT_S))
    limits = ("--requests-per-s", "8", "--burst", "8", "--max-concurrency", "3")
    keys = [create_key(store, "admin", *scopes(SCOPES))]
    keys += [create_key(store, "app", *scopes(("generate", "read")), *limits)]
    with running_server(model, store, *common, *budgets, *small) as server:
        lines, world = asyncio.run(load(options, seed, server, keys, ledger))
    if server.process.returncode not in (0, -15):
        ledger.violate(f"the server ended with {server.process.returncode}")
    manifests = check_store(store, world, ledger)
    say("asking again, alone")
    lines.append(
        check_answers(
            ledger, manifests, model=model, model_name=world.model, folder=folder,
            blobs=store / "blobs", flags=common,
            random=Random(seed), max_minutes=options.alone_minutes,
        )
    )  # fmt: skip
    return lines


def scopes(names: tuple[str, ...]) -> list[str]:
    return [part for name in names for part in ("--scope", name)]


def create_key(store: Path, name: str, *options: str) -> str:
    foreword = str(Path(sys.executable).with_name("foreword"))
    command = [foreword, "keys", "create", "--name", name, *options, "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def load(
    options: argparse.Namespace,
    seed: int,
    server: RunningServer,
    keys: list[str],
    ledger: Ledger,
) -> tuple[list[str], World]:
    """Run the workers, the faults and the watch; then check that the server is quiet."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=1.0)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits) as http:
        admin, app = (Session(http, ledger, key) for key in keys)
        world = await prepare(admin)
        begun_s = time.monotonic()
        end_s = begun_s + options.minutes * 60
        faults, watch = Faults(server, ledger), Watch(server)
        watching = asyncio.create_task(watch.run())
        telling = asyncio.create_task(tell(ledger, watch, begun_s))
        until_s = begun_s + 0.55 * options.minutes * 60  # then one engine, whose memory is judged
        failing = asyncio.create_task(
            faults.run(every_s=options.kill_every_s, until_s=until_s, hangs=options.minutes >= 2)
        )
        sessions = [app if i % 4 == 3 else admin for i in range(options.workers)]
        await asyncio.gather(
            *(
                work(session, world, Random(f"{seed}/{i}"), end_s, options, is_app=session is app)
                for i, session in enumerate(sessions)
            )
        )
        for task in (watching, telling):
            task.cancel()
        await failing
        closing = {
            "check_quiet": check_quiet(
                admin, ledger, device_bytes=NUM_DEVICE_TOKENS * TOKEN_BYTES,
                host_bytes=NUM_HOST_TOKENS * TOKEN_BYTES, num_faults=faults.num_faults,
            ),
            "check_released": check_released(admin, world, ledger),
        }  # fmt: skip
        for name, check in closing.items():
            await run_bounded(ledger, name, check, max_operation_s=600)
    recoveries = ", ".join(f"{seconds:.1f}" for seconds in faults.recoveries_s)
    lines = [f"ready again after {recoveries} s", *watch.report(ledger)]
    return lines, world


async def prepare(admin: Session) -> World:
    """Create the tasks, and collect sources: texts, chats, downloads of them, golden prompts."""
    info = (await admin.send("GET", "/v1/models", {"200"})).json()
    world = World(model=info["data"][0]["id"])
    world.dropping |= set(TEMPORARY)
    world.sources += [chat_source(messages) for messages in CHATS]
    for task, text in zip((*TASKS, *TEMPORARY), TEXTS * 2, strict=False):
        source = text_source(text, DEFINITIONS[0])
        headers = {"Content-Type": JSON}
        path = f"/tasks/{task}/prefix"
        reply = await admin.send("PUT", path, {"201"}, headers=headers, content=source.content)
        world.record(reply.json())
    for task in TASKS[:3]:
        for form, kind in (("artifact", SAFETENSORS), ("tar", TAR),
                           ("peft", TAR)):  # fmt: skip
            path = f"/tasks/{task}/versions/1/prefix"
            reply = await admin.send("GET", path, {"200"}, params={"format": form})
            world.sources.append(Source(form, kind, reply.content))
        body = {"prompt": "Once upon a time", "max_tokens": 5, "return_token_ids": True}
        reply = await admin.send("POST", "/generate", {"200"}, params={"task": task}, json=body)
        golden = [{"prompt": body["prompt"], "expect": reply.json()["token_ids"][:4]}]
        text = TEXTS[TASKS.index(task)]
        world.sources.append(text_source(text, DEFINITIONS[0], golden=golden))
    return world


async def work(
    session: Session,
    world: World,
    random: Random,
    end_s: float,
    options: argparse.Namespace,
    *,
    is_app: bool,
) -> None:
    """Send random operations until the end. An app's key may only generate."""
    weighted = [
        (op, n) for op, n in OPERATIONS if not is_app or op.__module__.endswith(".generation")
    ]
    operations, weights = zip(*weighted, strict=True)
    while time.monotonic() < end_s:
        [operation] = random.choices(operations, weights)
        await run_bounded(
            session.ledger, operation.__name__, operation(session, world, random),
            max_operation_s=options.max_operation_s,
        )  # fmt: skip
        is_out = session.ledger.outages.overlap(time.monotonic(), time.monotonic())
        await asyncio.sleep(random.uniform(0, 2.0 if is_out else 0.1))


async def tell(ledger: Ledger, watch: Watch, begun_s: float) -> None:
    """Print a line every minute."""
    while True:
        await asyncio.sleep(60)
        memory = [f"{one[-1].memory_mib:.0f}" for one in (watch.api, watch.engine) if one]
        say(
            f"{(time.monotonic() - begun_s) / 60:.0f} min: {ledger.num_operations} operations, "
            f"{ledger.num_violations} violations, {' + '.join(memory)} MiB"
        )


def summarise(ledger: Ledger, lines: list[str], seed: int) -> None:
    say(f"{'operation':<14} {'count':>6} {'p50 s':>7} {'p99 s':>7} {'max s':>7}  outcomes")
    outcomes: dict[str, list[str]] = defaultdict(list)
    for (operation, outcome), count in sorted(ledger.outcomes.items()):
        outcomes[operation].append(f"{count} x {outcome}")
    for operation, durations in sorted(ledger.durations_s.items()):
        ordered = sorted(durations)
        p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
        say(
            f"{operation:<14} {len(ordered):>6} {p50:>7.2f} {p99:>7.2f} {ordered[-1]:>7.2f}  "
            + ", ".join(outcomes[operation])
        )
    for line in lines:
        say(line)
    for violation in ledger.violations:
        say(f"VIOLATION {violation}")
    counts = {"operations": ledger.num_operations, "answers": ledger.num_answers}
    say(json.dumps({"seed": seed, **counts, "violations": ledger.num_violations}))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
