"""A release in four waves over a simulated fleet: `make fleet-updates BOARDS=200`.

First a bad release: three of a hundred boards do not come up with it, or are never healthy. The roll-out has to stop in the
wave where one bad board more than `--most-bad` has fallen back, and no board of a later wave may have heard of it. Then a good
one, while broker, receiver and the roll-out's own process are killed: all boards have to run it, each told as often as may be
and updated once. Boards are fleet_updating.py's; a wrong end is exit status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from firmware import fat
from fleet import folders
from fleet_programs import PATH, Program, Workers, free_port, make_broker, query
from update_server import Server

from laptop import update_bundle

ROOT = Path(__file__).resolve().parent.parent
KIND = "lab"
WAVES = "1,5%,25%,100%"
BOUND = 300.0  # seconds for a phase
AUTOBOOT = (ROOT / "buildroot/board/raspberrypi/autoboot.txt").read_bytes()


class Chosen(NamedTuple):
    """The options of a run."""

    boards: int = 200
    pause: int = 3  # seconds that a wave stays healthy
    seed: int = 1
    workers: int = 2
    away: float = 2.0  # seconds that the killed stay away


class Fleet:
    """Boards in some processes, their mothership, a web server, and what they do."""

    def __init__(self, chosen: Chosen, folder: Path, disks: Path) -> None:
        self.chosen, self.folder = chosen, folder
        self.chance = random.Random(chosen.seed)
        port = free_port()
        self.database = folder / "mothership.db"
        mothership = [sys.executable, str(ROOT / "mothership")]
        self.mothership = mothership
        self.broker = make_broker("mosquitto", port, folder)
        self.receiver = Program(
            "receiver", [*mothership, "receive", f"127.0.0.1:{port}", str(self.database)], folder / "receiver.log"
        )
        words = [*mothership, "rollout", "run", str(self.database), f"127.0.0.1:{port}", "--repeat", "2s"]
        self.driver = Program("rollout run", words, folder / "driver.log")
        update_bundle.make_key(str(folder / "keys"))
        (folder / "web").mkdir()
        self.server = Server(folder / "web", folder / "tls")
        card = fat(folder / "card", "BOOT", 1, {"autoboot.txt": AUTOBOOT, "tryboot.flg": b"0\n"})
        self.place = str(folder / "place")
        self.names = [f"mast-{number:03}" for number in range(chosen.boards)]
        shared = (f"127.0.0.1:{port}", str(disks), str(card), str(folder / "keys/update.pem"), self.place)
        parts = [self.names[number :: chosen.workers] for number in range(chosen.workers)]
        self.workers = Workers(_serve, [(part, shared, str(self.server.trusted)) for part in parts])
        self.order = self.workers.order
        self.wrong: list[str] = []
        self.kills: Counter[str] = Counter()

    def look(self) -> dict[str, dict[str, Any]]:
        return {name: row for part in self.order("look") for name, row in part.items()}

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def check(self, good: bool, text: str) -> None:
        if not good:
            self.wrong.append(text)
            self.say(f"WRONG: {text}")

    def ask(self, *words: str) -> str:
        """A command of the mothership."""
        done = subprocess.run([*self.mothership, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"fleet: mothership {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def until(self, what: str, check: Callable[[], Any], seconds: float = BOUND) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := check()):
            if time.monotonic() > deadline:
                raise SystemExit(f"fleet: after {seconds:g} s still not: {what}; {self.said()}")
            time.sleep(0.3)
        return found

    def said(self) -> str:
        logs = [self.folder / "driver.log", self.folder / "receiver.log"]
        failed = [f"{name}: {row}" for name, row in self.look().items() if row["failed"] or row["busy"]]
        shown = (
            "\n".join(failed[:10]) + self.ask("rollout", "status", str(self.database)) + self.ask("boards", str(self.database))
        )
        return "\n".join([shown, *(path.read_text()[-1500:] for path in logs if path.exists())])

    def status(self, rollout: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("rollout", "status", str(self.database), rollout, "--json"))[0]
        return found

    def running(self, rollout: str) -> int:
        """The wave of a roll-out that runs, from 1; 0 of one that does not."""
        state, wave = query(self.database, f"SELECT state, wave FROM rollout WHERE id = '{rollout}'")[0]
        return int(wave) + 1 if state == "running" else 0

    # --- phases --------------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """All boards are known with the version that they run."""
        began = time.monotonic()
        self.order("connect", self.chosen.boards)
        known = "SELECT count(*) FROM board WHERE json_extract(info, '$.release') = '1.0'"
        self.until("the mothership knows each board", lambda: query(self.database, known)[0][0] == self.chosen.boards)
        self.say(f"{self.chosen.boards} boards are known to the mothership after {time.monotonic() - began:.1f} s")
        self.ask("group", "add", str(self.database), "masts", "--pattern", "mast-*")

    def begin(self, version: str, most_bad: int) -> dict[str, list[str]]:
        """Make a bundle, add it as a release, and start its roll-out, without the process that tells boards: boards by wave."""
        images = self.folder / f"images-{version}"
        images.mkdir()
        (images / "boot.vfat").write_bytes(f"{version}\n".encode() * 4000)
        (images / "rootfs.squashfs").write_bytes(f"{version}\n".encode() * 20000)
        out = self.folder / "web" / f"{version}.swu"
        update_bundle.make_bundle(str(images), KIND, version, str(self.folder / "keys"), str(out), self.place)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        url = self.server.url(out.name)
        self.ask("release", "add", str(self.database), version, url, "--sha256", digest, "--version", version, "--fits", KIND)
        self.ask("rollout", "start", str(self.database), version, "--group", "masts", "--wave", WAVES,
                 "--pause", f"{self.chosen.pause}s", "--most-bad", str(most_bad))  # fmt: skip
        waves: dict[str, list[str]] = {}
        for target in self.status(f"{version}-masts")["targets"]:
            waves.setdefault(str(target["wave"] + 1), []).append(target["board"])
        return waves

    def bad_release(self) -> None:
        """Of 200 boards six are bad: one in wave 2, two in wave 3, and three in wave 4, which must not hear of it."""
        count = max(3, round(0.03 * self.chosen.boards))
        most_bad = count // 3
        waves = self.begin("1.1", most_bad)
        spread = ["2"] * (most_bad // 2) + ["3"] * (most_bad + 1 - most_bad // 2)
        spread += ["4"] * (count - len(spread))
        bad = {waves[wave].pop(): ("sick", "panic")[index % 2] for index, wave in enumerate(spread)}
        self.order("sicken", bad, "1.1")
        began = time.monotonic()
        self.driver.start()
        self.until("the roll-out has stopped", lambda: not self.running("1.1-masts"))
        took, found = time.monotonic() - began, self.status("1.1-masts")
        self.check((found["state"], found["wave"]) == ("stopped", 3), f"bad release: {found['state']} in wave {found['wave']}")
        self.until("all boards are quiet", lambda: not any(row["busy"] for row in self.look().values()))
        self.driver.kill()
        rows = self.look()
        back = [name for name in bad if rows[name]["words"].get("1.1")]
        for name in back:
            row = rows[name]
            self.check((row["slot"], row["runs"], row["default"]) == ("A", "1.0", "A"), f"{name} did not fall back: {row}")
            self.check(row["ledger"]["B"]["state"] == "bad", f"{name} does not know that slot B is bad: {row['ledger']}")
        told = [name for name, row in rows.items() if row["words"].get("1.1")]
        last = [target["board"] for target in found["targets"] if target["wave"] == 3]
        self.check(not set(told) & set(last), "boards of the last wave were told")
        updated = sum(row["runs"] == "1.1" for row in rows.values())
        rest = [name for name in told if rows[name]["runs"] != "1.1" and name not in bad]
        self.check(not rest, f"neither updated nor fell back: {[(name, rows[name]) for name in rest]}")
        self.say(
            f"bad release, {count} bad boards, --most-bad {most_bad}: stopped in wave {found['wave']} after {took:.1f} s: "
            f"{len(told)} told, {updated} updated, {len(back)} fell back by themselves, {len(rows) - len(told)} heard nothing"
        )
        self.say(found["why"])
        self.result_of(back, "fell back", "1.1")

    def good_release(self) -> None:
        """To all boards, while the mothership's programs are killed again and again."""
        self.order("sicken", {}, "")
        self.begin("1.2", 0)
        began = time.monotonic()
        self.driver.start()
        programs = (self.broker, self.receiver, self.driver)
        opened: dict[int, float] = {}
        kill_at, turn = began + 1.0, 0

        def done() -> bool:
            nonlocal kill_at, turn
            wave = self.running("1.2-masts")
            if wave:
                opened.setdefault(wave, time.monotonic() - began)
            if wave and time.monotonic() > kill_at and turn < 6:
                program = programs[turn % len(programs)]
                turn += 1
                program.kill()
                self.kills[program.name] += 1
                time.sleep(self.chance.uniform(0.2, self.chosen.away))
                program.start()
                kill_at = time.monotonic() + self.chance.uniform(1.0, 3.0 + self.chosen.pause)
            return not wave

        self.until("the roll-out is done", done)
        took, found = time.monotonic() - began, self.status("1.2-masts")
        self.check(found["state"] == "done", f"good release: {found['state']}: {found['why']}")
        self.until("all boards are quiet", lambda: not any(row["busy"] for row in self.look().values()))
        self.driver.kill()
        rows = self.look()
        for name, row in rows.items():
            self.check((row["runs"], row["default"]) == ("1.2", row["slot"]), f"{name} does not run 1.2 for good: {row}")
            self.check(row["writes"].get("1.2") == 1, f"{name} wrote 1.2 {row['writes'].get('1.2')} times")
        self.result_of(list(rows), "committed", "1.2")
        again = sum(row["words"]["1.2"] > 1 for row in rows.values())
        killed = ", ".join(f"{name} {count}" for name, count in self.kills.items())
        waves = ", ".join(f"wave {wave} after {when:.0f} s" for wave, when in sorted(opened.items()))
        self.say(f"good release: {found['why']}, done after {took:.1f} s ({waves}); killed meanwhile: {killed}; "
                 f"each board wrote it once, {again} carried the word out twice")  # fmt: skip
        self.say(f"{self.server.sent / 1e6:.1f} MB of bundles over TLS; receiver {self.receiver.size():.0f} MB")

    def result_of(self, boards: list[str], result: str, version: str) -> None:
        """Each of these boards has told the mothership once how its update ended."""
        text = f"""SELECT board, count(*) FROM record WHERE kind = 'update' AND json_extract(body, '$.data.result') = '{result}'
                   AND json_extract(body, '$.data.version') = '{version}' GROUP BY board"""

        def there() -> bool:
            return dict(query(self.database, text)) == dict.fromkeys(boards, 1)

        self.until(f"{len(boards)} boards have recorded {result!r} once", there, 60.0)
        self.say(f"{len(boards)} boards have recorded once that {version} {result}")

    def __enter__(self) -> Fleet:
        self.broker.start()
        self.receiver.start()
        self.workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.end()
        for program in (self.driver, self.receiver, self.broker):
            program.kill()
        self.server.close()


def _serve(pipe: Any, names: list[str], shared: tuple[str, ...], trusted: str) -> None:
    """Boards in a process of its own: this one must not import their modules."""
    from fleet import raise_descriptors
    from fleet_updating import Shared, serve

    raise_descriptors()
    serve(pipe, names, Shared(*shared), trusted)


def why_not() -> str:
    """Programs that are missing here."""
    found = {name: shutil.which(name, path=PATH) for name in ("mosquitto", "swupdate", "openssl", "cpio", "mkfs.vfat", "mcopy")}
    return ", ".join(name for name, path in found.items() if path is None)


def run(chosen: Chosen) -> list[str]:
    """Both roll-outs; what is wrong."""
    with folders("/dev/shm") as (folder, disks):
        began = time.monotonic()
        print(f"{chosen.boards} boards in {chosen.workers} processes, waves {WAVES}, seed {chosen.seed}", flush=True)
        with Fleet(chosen, folder, disks) as fleet:
            fleet.connect()
            fleet.bad_release()
            fleet.good_release()
            fleet.say(f"both took {time.monotonic() - began:.0f} s; {len(fleet.wrong)} things are wrong")
            return fleet.wrong


def main() -> int:
    usual = Chosen()
    parser = argparse.ArgumentParser(prog="make fleet-updates", description=__doc__)
    parser.add_argument("boards", nargs="?", type=int, default=usual.boards)
    parser.add_argument("--pause", type=int, default=usual.pause, help="seconds that a wave stays healthy")
    parser.add_argument("--seed", type=int, default=usual.seed)
    options = parser.parse_args()
    if missing := why_not():
        raise SystemExit(f"fleet: no {missing} here")
    wrong = run(Chosen(options.boards, options.pause, options.seed))
    for line in wrong:
        print(f"fleet: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
