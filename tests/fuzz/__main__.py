"""`python -m fuzz`: a campaign on every target, a table of counts at its end; `--case NAME` repeats one case."""

from __future__ import annotations

import argparse
import sys
import time

from fuzz import campaign

SHARES = {"snapshots": 1.0, "checkpoints": 0.04, "rows": 0.1, "text": 0.1, "images": 0.1}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=500, help="damaged snapshots; other targets get a share of it")
    parser.add_argument("--only", choices=campaign.TARGETS, action="append", help="this target alone; repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--case", help="repeat one case, TARGET/KIND/SEED")
    given = parser.parse_args()
    if given.case:
        cases = [campaign.Case.named(given.case)]
    else:
        cases = [
            case
            for target in given.only or campaign.TARGETS
            for case in campaign.cases_of(target, count=max(1, round(given.cases * SHARES[target])), seed=given.seed)
        ]
    began, done = time.monotonic(), 0

    def say(result: campaign.Result) -> None:
        nonlocal done
        done += 1
        if result.outcome in campaign.FAILURES or given.case:
            print(f"{result.outcome}: {result.case}\n{result.detail}", flush=True)
        if done % 500 == 0:
            print(f"{done:,} of {len(cases):,} cases, {time.monotonic() - began:.0f} s", flush=True)

    results = campaign.run(cases, jobs=min(given.jobs, len(cases)), say=say)
    failed = campaign.failures(results)
    print(campaign.table(results))
    print(f"{len(results):,} cases in {time.monotonic() - began:.0f} s, {len(failed):,} failed")
    for result in failed[:20]:
        print(f"repeat: cd tests && python -m fuzz --case '{result.case}'")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
