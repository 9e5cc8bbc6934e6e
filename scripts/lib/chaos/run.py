"""Causes faults between a face and a subscriber, at random moments, and checks what arrives.

    scripts/chaos --rounds 200 --protocol 5

Each round causes one or two faults around the real agent: the broker or the agent is killed, the network is cut or
stalls, CONNECT is refused, a permission is revoked, the outbox overflows, a message ends connections or is too large.
The proof does not depend on the agent: the scene's script lists the visits (`chaos.ledger`), a recording proxy what the
broker acknowledged, a subscriber what arrived. The exit code is 1 when anything is missing, out of order or untrue; the
evidence is then kept.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from scripts.lib.chaos.faults import FAULTS, LOSSY
from scripts.lib.chaos.ledger import GRACE_S, Account
from scripts.lib.chaos.world import World
from tests.fakes.broker import MOSQUITTO

SETTLE_S = 25.0
CHAPTER = 10
"""Rounds after which the agent is stopped in order and settled evidence is discarded."""
POLL_S = 0.1


@dataclass
class Round:
    """Result of one round."""

    fault: str
    settled_s: float
    faults: List[str]


@dataclass
class Result:
    """Result of the run."""

    rounds: List[Round] = field(default_factory=list)
    counts: "Counter[str]" = field(default_factory=Counter)
    by_fault: Dict[str, "Counter[str]"] = field(default_factory=dict)
    evidence: Optional[str] = None
    took_s: float = 0.0

    @property
    def faults(self) -> List[str]:
        """A line for every violation."""
        return [f"round {number}, {r.fault}: {fault}" for number, r in enumerate(self.rounds, 1) for fault in r.faults]


def run(
    rounds: int,
    protocol: str,
    broker: str,
    seed: int,
    store: str = "disk",
    only: str = "",
    verbose: bool = False,
) -> Result:
    """Run so many rounds; keep the evidence when there is a violation."""
    chance = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-chaos-"))
    result = Result()
    began_t = time.monotonic()
    plan = only.split(",") if only else [name for name, fault in FAULTS.items() if fault.possible(broker, protocol)]
    with World(folder, broker, protocol, store, chance) as world:
        deck: List[str] = []
        before = world.account()
        for number in range(1, rounds + 1):
            deck = deck or chance.sample(plan, len(plan))
            one, before = _round(world, deck.pop(), result, before)
            if number % CHAPTER == 0 or number == rounds or one.faults:
                one.faults += _stop(world)
                if one.faults:
                    world.keep(folder / f"round-{number}", one.faults)
                world.new_chapter()
                before = world.account()
            if verbose:
                line = f"{number}/{rounds} {one.fault}: settled after {one.settled_s:.1f} s {one.faults or ''}"
                print(line[:400], file=sys.stderr, flush=True)
    result.took_s = time.monotonic() - began_t
    if result.faults:
        result.evidence = str(folder)
    else:
        shutil.rmtree(folder)
    return result


def _round(world: World, name: str, result: Result, before: Account) -> Tuple[Round, Account]:
    effects = world.effects(before)
    time.sleep(world.chance.uniform(0.0, 0.8))
    FAULTS[name].strike(world)
    mended_t = time.monotonic()
    account = _settle(world)
    settled_s = time.monotonic() - mended_t
    faults = _wrong(account) + world.untrue(account) + world.log_faults()
    gaps = len(account.gaps) - len(before.gaps)
    if gaps > 0 and name not in LOSSY:
        faults.append(f"{gaps} gaps without a cause: {account.gaps[-gaps:]}")
    counts = result.by_fault.setdefault(name, Counter())
    for key, value in (
        ("rounds", 1), ("events", account.events - before.events), ("gaps", gaps),
        ("duplicates", account.duplicates - before.duplicates), ("felt", world.effects(account) - effects),
    ):  # fmt: skip
        counts[key] += value
    result.rounds.append(Round(name, settled_s, faults))
    return result.rounds[-1], account


def _stop(world: World) -> List[str]:
    """Stop the agent in order: every visit must be closed then, and no retained value may claim that it runs."""
    world.stop_agent()
    return _wrong(_settle(world)) + world.goodbye() + world.log_faults()


def _wrong(account: Account) -> List[str]:
    return account.faults + [f"never came: {what}" for what in account.missing]


def _settle(world: World) -> Account:
    """Wait until everything expected has arrived; what is missing at the deadline, or wrong for long, is a fault."""
    until_t = time.monotonic() + SETTLE_S
    wrong = 0
    as_of = time.time() + GRACE_S  # so that everything shown until now must have arrived
    while True:
        account = world.account(as_of)
        ready = (account.boot() or not world.agent_lives) and not account.missing
        wrong = wrong + 1 if account.faults else 0
        if (time.time() > as_of and ready and not account.faults) or wrong > 20 or time.monotonic() > until_t:
            return account
        time.sleep(POLL_S)


def table(result: Result) -> str:
    """Return the result as Markdown tables."""
    lines = [
        "| fault | rounds | felt | events | duplicates | gaps announced | settled after, median / max s | violations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for name in sorted(result.by_fault):
        counts = result.by_fault[name]
        total.update(counts)
        lines.append(_row(name, counts, [r for r in result.rounds if r.fault == name]))
    lines.append(_row("all", total, result.rounds))
    lines += ["", f"{len(result.rounds)} rounds in {result.took_s:.0f} s; " + _verdict(result)]
    return "\n".join([*lines, *result.faults[:20]])


def _row(name: str, counts: "Counter[str]", rounds: List[Round]) -> str:
    times = [r.settled_s for r in rounds]
    wrong = sum(len(r.faults) for r in rounds)
    settled = f"{statistics.median(times):.1f} / {max(times):.1f}"
    numbers = " | ".join(str(counts[key]) for key in ("rounds", "felt", "events", "duplicates", "gaps"))
    return f"| {name} | {numbers} | {settled} | {wrong} |"


def _verdict(result: Result) -> str:
    if not result.faults:
        return "every event arrived, in order, and every retained value was true"
    return f"{len(result.faults)} VIOLATIONS; evidence in {result.evidence}"


def as_json(result: Result) -> Dict[str, Any]:
    """Return the result for programs."""
    rounds = [vars(r) for r in result.rounds]
    return {"rounds": rounds, "by_fault": result.by_fault, "faults": result.faults, "evidence": result.evidence}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--protocol", choices=("5", "3.1.1"), default="5")
    parser.add_argument("--broker", choices=("mosquitto", "iotcore"), default="mosquitto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("disk", "memory"), default="disk", help="storage of the outbox")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"only these faults, of {','.join(FAULTS)}")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    args = parser.parse_args()
    if args.broker == "mosquitto" and MOSQUITTO is None:
        parser.error("needs mosquitto: apt-get install mosquitto, or --broker iotcore")
    if args.broker == "iotcore" and args.protocol == "5":
        parser.error("iotcore's plain listener speaks 3.1.1: add --protocol 3.1.1")
    result = run(args.rounds, args.protocol, args.broker, args.seed, args.store, args.only, verbose=not args.json)
    print(json.dumps(as_json(result)) if args.json else table(result))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
