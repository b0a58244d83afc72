"""Each list of the API over a growing table: queries, and the median answer to one client."""

import re

from benchmarks.bench import Bench
from benchmarks.figures import alone, growing
from benchmarks.outcome import Outcome, Sample, at_most
from benchmarks.sides import Ask, Side, measure, warm

NAME, TITLE = "lists", "Each list of the API, to 10 000 rows"
MOST_SECONDS, MOST_ROUNDS = 0.8, 3  # of each of 36 measurements: a page is quick, and its time varies little
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


def run(bench: Bench) -> Outcome:
    """First pages of 50, one client."""
    outcome = Outcome(NAME, TITLE)
    system = bench.system
    by_list: dict[str, dict[float, list[Sample]]] = {}
    sizes = (100, 1_000, 10_000)
    for size in sizes:
        email = f"lists-{size}@example.com"
        token = system.register(email)
        for path in system.run("benchmarks.many_rows", {"email": email, "count": size}):
            name = _ID.sub("{id}", path)
            side = Side(name, f"http://127.0.0.1:{system.port}", (f"Authorization: Bearer {token}",), ())
            ask = Ask(path=path, connections=1)
            seconds = min(bench.effort.seconds, MOST_SECONDS)
            warm(side, ask, seconds)
            samples = [measure(side, ask, seconds) for _ in range(min(bench.effort.rounds, MOST_ROUNDS))]
            by_list.setdefault(name, {})[size] = samples
            outcome.samples[f"{name}, {size} rows"] = samples
            if size == sizes[-1]:
                queries = float(system.run("benchmarks.queries", {"path": path, "token": token}))
                outcome.figures += [
                    alone(f"{name}: p50 with {size} rows", [s["p50_ms"] for s in samples], "ms"),
                    alone(f"{name}: queries", [queries], "", at_most(4)),
                ]
    outcome.curves.append(growing("lists", "Lists over a growing table", "rows", "p50, ms", "p50_ms", by_list))
    return outcome
