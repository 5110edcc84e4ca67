"""What `federate` prints: sites, rounds, scores, privacy and audit, from the plain values that it also writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["lines"]

_RETRIEVAL = "top-1 brain_to_image"
_NOT_RUN = {
    "membership": "the network has no head that classifies",
    "inversion": "no prototype of it can be read, or too few others of every class were held back",
}


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A run in lines.

    Parameters
    ----------
    told : mapping
        What ``phosphene federate --json`` writes.
    """
    for name, people in told["sites"].items():
        shares = told["fractions"][name]
        words = ", ".join(f"{key} {value:.2f}" for key, value in shares.items() if not key.startswith("only "))
        yield f"{name}: {', '.join(people) or 'no brain'}; {told['trials'][name]} trials, {words}"
        if not shares["complete"]:
            yield f"{name} has no complete trial: nothing of it enters the prototypes of the fusion"
    yield from told["notes"]
    for record in told["history"]:
        yield _round(record)
    stayed = [set(record.get("unmoved", ())) for record in told["history"]]
    for name in sorted(set.intersection(*stayed)):
        yield f"the encoder of {name} was never trained: in every round too few sites had {name}"
    if "scores" in told:
        yield from _scores(told["scores"], told.get("unprotected"))
    if "privacy" in told:
        yield from _privacy(told)
    if "audit" in told:
        yield from _audit(told["audit"])


def _round(record: Mapping[str, Any]) -> str:
    losses = [each["loss total"] for each in record["metrics"].values() if "loss total" in each]
    words = [f"round {record['round']}: {len(record['used'])} sites"]
    words += [f"loss {sum(losses) / len(losses):.3f}"] if losses else []
    words += [f"{(sum(record['bytes_up'].values()) / 1e6):.2f} MB sent", f"{record['seconds']:.1f} s"]
    words += [f"{name} missing ({reason})" for name, reason in record["missing"].items()]
    words += [f"{name} refused ({reason})" for name, reason in record["refused"].items()]
    words += [f"not drawn: {', '.join(record['idle'])}"] if record["idle"] else []
    if unmoved := record.get("unmoved"):
        words.append(f"the encoder of {', '.join(unmoved)} stayed as it was (too few sites had it)")
    words += [f"{record['suppressed']} prototypes held back, of too few trials"] if record["suppressed"] else []
    words += [f"no prototype of {', '.join(record['without_prototype'])}"] if record["without_prototype"] else []
    return ", ".join(words)


def _scores(scores: Mapping[str, Any], bare: Mapping[str, Any] | None) -> Iterator[str]:
    chances, patterns = scores["chances"], scores["patterns"]
    if kind := next((name for name in ("accuracy", "mAP") if name in patterns["all"]["mean"]), ""):
        common = f", the commonest class alone {chances['commonest']:.3f}" if "commonest" in chances else ""
        yield (
            f"{kind} on the test part by what is shown, mean over sites [95 % interval]; chance {chances[kind]:.3f}"
            + common
        )
        for pattern, found in patterns.items():
            low, high = found["intervals"][kind]
            worst = found["worst"][kind]
            words = f"  {pattern}: {found['mean'][kind]:.3f} [{low:.3f}, {high:.3f}], worst {worst['site']}"
            yield f"{words} {worst['value']:.3f}" + _cost(bare, pattern, kind, found)
    retrieved = {name: found for name, found in patterns.items() if _RETRIEVAL in found["mean"]}
    if retrieved:
        yield f"the picture found among {chances['gallery']:.0f} by what is shown, top-1; chance {chances['top-1']:.3f}"
    for pattern, found in retrieved.items():
        yield f"  {pattern}: {found['mean'][_RETRIEVAL]:.3f}" + _cost(bare, pattern, _RETRIEVAL, found)


def _cost(bare: Mapping[str, Any] | None, pattern: str, metric: str, found: Mapping[str, Any]) -> str:
    """What protection costs, where the run without it was made."""
    if bare is None:
        return ""
    without = bare["patterns"][pattern]["mean"][metric]
    return f"; without protection {without:.3f}, cost {without - found['mean'][metric]:+.3f}"


def _privacy(told: Mapping[str, Any]) -> Iterator[str]:
    seen = "the server sees sums over sites alone" if told["secure"] else "the server sees each site's contribution"
    yield f"privacy ({seen}):"
    for words in told["privacy"]["told"].values():
        yield from words.splitlines()


def _audit(audit: Mapping[str, Any]) -> Iterator[str]:
    for arm, sites in audit.items():
        yield f"audit, {arm}, half of every site's stimuli held back [95 % interval]:"
        for name, attacks in sites.items():
            yield f"  {name}: {_verdict(attacks)}"
            for kind in ("membership", "inversion"):
                if own := [each for each in attacks if each["name"].startswith(kind)]:
                    worst = max(own, key=lambda each: each["low"] - each["chance"])
                    yield (
                        f"    {worst['name']}: {worst['measure']} {worst['value']:.3f} [{worst['low']:.3f}, "
                        f"{worst['high']:.3f}], chance {worst['chance']:.3f}"
                    )
                elif attacks:
                    yield f"    no {kind}: {_NOT_RUN[kind]}"


def _verdict(attacks: Sequence[Mapping[str, Any]]) -> str:
    if not attacks:
        return "nothing could be attacked: nothing of it counted, or it has too few trials of every class"
    leaks = sum(each["succeeds"] for each in attacks)
    return f"{leaks} of {len(attacks)} attacks lie above chance; the strongest of each kind:"
