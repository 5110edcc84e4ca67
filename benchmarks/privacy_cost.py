"""What noise costs in epsilon, and what it adds to prototypes: the tables of docs/federated_privacy.md.

    python benchmarks/privacy_cost.py [--rounds 20] [--delta 1e-5]

Arithmetic of the accountant alone, no training; needs the extra `privacy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from phosphene.federation.accounting import Accountant, Release, Unit
from phosphene.federation.library import PARTS
from phosphene.federation.privacy import PrivacySettings, Protection
from phosphene.federation.trial_sgd import TrialSgdSettings

WIDTH = 64
NOISE = (1.0, 2.0, 4.0, 8.0, 16.0)
TRIALS, EPOCHS = 640, 2


def epsilon(releases: Sequence[Release], unit: Unit, rounds: int, delta: float) -> float:
    """After so many rounds of one site."""
    accountant = Accountant(delta)
    for _ in range(rounds):
        accountant.spend("site", releases)
    return accountant.epsilon(unit, "site")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--delta", type=float, default=1e-5)
    options = parser.parse_args()
    given = options.rounds, options.delta
    print(
        "| noise | per trial, prototypes alone | per trial, with weights | per site, weights | on a sum | on a count |"
    )
    print("|---|---|---|---|---|---|")
    for noise in NOISE:
        library = {"feature_limit": 1.0, "library_noise": noise}
        both = {**library, "update_limit": 1.0, "update_noise": noise}
        alone, all_ = (Protection(PrivacySettings(**each), WIDTH, len(PARTS)) for each in (library, both))
        values = [
            epsilon(alone.releases(weights=False), "trial", *given),
            epsilon(all_.releases(), "trial", *given),
            epsilon(all_.releases(), "site", *given),
            alone.sum_deviation,
            alone.count_deviation,
        ]
        print(f"| {noise:g} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    for noise in NOISE[:3]:
        release = TrialSgdSettings(noise=noise, batch_size=64).release(TRIALS, EPOCHS)
        print(f"private training, noise {noise:g}: epsilon {epsilon([release], 'trial', *given):.1f}")


if __name__ == "__main__":
    main()
