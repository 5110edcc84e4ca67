"""What is configured where: the run's settings come from the server, what a site is and has from the site alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field as Option

from phosphene.errors import InputError
from phosphene.federation.holdings import held_at, held_words
from phosphene.federation.privacy import PrivacySettings
from phosphene.federation.protected import readable
from phosphene.federation.settings import FederationSettings
from phosphene.settings import Settings, parse_assignments

__all__ = ["RunSettings", "SiteSettings", "check_privacy"]


class RunSettings(Settings):
    """A run, as the app's ``[tool.flwr.app.config]`` and ``flwr run --run-config`` give it; empty text is not given."""

    rounds: int = Option(default=10, ge=1, description="in all; a run in the same folder may be given more")
    sites: int = Option(default=2, ge=1, description="how many are waited for")
    out: str = Option(default="", description="run folder at the server, from the root; resumed where it exists")
    preset: str = Option(default="default", description="of phosphene federate")
    set: str = Option(default="", description="settings, such as 'model.width=32 client.epochs=1'")
    seed: int = Option(default=0, ge=0)
    classes: str = Option(default="", description="label columns of the classes, with commas")
    class_names: str = Option(default="", description="the classes, with commas; default: what sites find, alike")
    clusters: str = Option(default="", description="instead of classes: the digest of a file of clusters at the sites")
    targets: str = Option(default="", description="image encoder, by name, where a site names none itself")
    text: str = Option(default="", description="text encoder, likewise")
    split: str = Option(default="", description="split of the sites' studies; default: their first")
    missing: float = Option(default=0.0, ge=0, lt=1, description="rate of modalities hidden on purpose, for studies")
    pattern: Literal["instance", "site"] = Option(default="instance", description="how they are hidden")
    participation: float = Option(default=1.0, gt=0, le=1, description="share of the sites drawn for a round")
    quorum: int = Option(default=0, ge=0, description="usable contributions a round needs; 0: the preset's")
    wait: float = Option(default=600.0, gt=0, description="seconds until the sites must be there")
    deadline: float = Option(default=3600.0, gt=0, description="seconds for the answers of a round")
    privacy: str = Option(default="", description="such as 'update_limit=1 feature_limit=1'; see federated_privacy")
    secure_sum: bool = Option(default=False, description="not available on this engine")
    study: str = Option(default="", description="simulation only: the study dealt to the sites")
    keep: str = Option(default="", description="simulation only: folder of what the sites keep")
    clusters_file: str = Option(default="", description="simulation only: the file of clusters")
    holds: str = Option(default="", description="simulation only: what sites hold, such as 'site-1=fmri,image'")

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """From Flower's run config; checked as a whole.

        Raises
        ------
        InputError
            For unknown settings, a relative folder, and secure summation or noise that counts on it.
        """
        made = cls.build({name.replace("-", "_"): value for name, value in config.items()})
        if made.secure_sum:
            raise InputError(
                "secure summation is not available on this engine: Flower has it for its older interface alone. "
                "Train in process (phosphene federate), or use noise at the sites (privacy)"
            )
        made._check_classes()
        for name in ("out", "study", "keep", "clusters_file"):
            if (value := getattr(made, name)) and not Path(value).is_absolute():
                raise InputError(f"{name} is {value!r}: give the path from the root, apps have no folder of their own")
        if made.pattern != "instance" and not made.missing:
            raise InputError("pattern has no use: nothing is missing at a rate of 0")
        made.federation()
        held_at(made.holds.split())
        return made

    def _check_classes(self) -> None:
        if not self.classes and not self.clusters:
            raise InputError("classes is empty: name the label columns of the classes, or give the digest of clusters")
        for name in ("classes", "class_names"):
            if self.clusters and getattr(self, name):
                raise InputError(f"{name} has no use: the classes are clusters")
        if self.clusters and not re.fullmatch(r"[0-9a-f]{32}", self.clusters):
            raise InputError(
                f"clusters is a digest of 32 hexadecimal digits, not {self.clusters!r}; the file is the sites'"
            )
        if self.clusters_file and not self.clusters:
            raise InputError("clusters_file has no use without clusters, the file's digest")

    @property
    def columns(self) -> list[str]:
        """Label columns of the classes."""
        return _words(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Classes that were fixed beforehand; none where sites find them."""
        return tuple(_words(self.class_names))

    @property
    def notes(self) -> list[str]:
        """What was set without being asked for, and what to know of what was."""
        return self._federation()[1]

    def federation(self) -> FederationSettings:
        """Settings that all sites and the server must have alike."""
        return self._federation()[0]

    def protection(self) -> PrivacySettings | None:
        """Clipping and noise at the sites; None where nothing is asked for."""
        return _privacy_of(self.privacy)

    def _federation(self) -> tuple[FederationSettings, list[str]]:
        given = parse_assignments(self.set.split())
        if "seed" in given:
            raise InputError("the seed is a setting of the run: seed")
        for name, table in given.items():
            if not isinstance(table, dict):
                raise InputError(f"set takes TABLE.KEY=VALUE, such as model.width=64; found {name} = {table!r}")
        settings = FederationSettings.preset(self.preset, seed=self.seed, **given)
        if self.quorum:
            settings = FederationSettings.build(settings.model_dump(), {"server": {"quorum": self.quorum}})
        return readable(settings, self.protection(), self.sites, "min_count" in given.get("library", {}))


class SiteSettings(Settings):
    """What a site is and has, from ``flower-supernode --node-config``; nothing of it is sent, but the name."""

    site: str = Option(default="", description="its name in the federation")
    study: str = Option(default="", description="its study file")
    keep: str = Option(default="", description="folder of what it keeps: adapters, and what was released so far")
    people: str = Option(default="", description="of the study, with commas; default: all of the training part")
    targets: str = Option(default="", description="image encoder by name, or a folder written by phosphene encode")
    text: str = Option(default="", description="text encoder, likewise")
    privacy: str = Option(default="", description="takes part in runs with this privacy alone, in words as of a run")
    epsilon_limit: float = Option(default=0.0, ge=0, description="per trial, over all runs in keep; 0: none")
    holds: str = Option(default="", description="its modalities, such as 'image,text'; default: all three")
    clusters: str = Option(default="", description="its file of clusters, for runs whose classes they are")
    partition_id: int | None = Option(default=None, ge=0, description="its place where one study is dealt to sites")
    num_partitions: int | None = Option(default=None, ge=1, description="how many sites there are then")

    @classmethod
    def of_config(cls, config: Mapping[str, Any], run: RunSettings) -> Self:
        """From the node's configuration, and in a simulation from the run's.

        A site with a name of its own reads and writes only what its own configuration names: the server has no say.

        Raises
        ------
        InputError
            For a configuration that leaves open what the site is, or where its data lie.
        """
        made = cls.build({name.replace("-", "_"): value for name, value in config.items()})
        dealt = made.partition_id is not None and made.num_partitions is not None
        if dealt == bool(made.site):
            raise InputError("a site has a name (site=...), or a place in a simulation (partition-id, num-partitions)")
        for name in ("people", "holds"):
            if dealt and getattr(made, name):
                raise InputError(
                    f"{name} has no use: in a simulation people are dealt to sites, and the run says the rest"
                )
        held_words(made.holds)
        if not dealt:
            made._check_alone(run)
        check_privacy(made.privacy, made.epsilon_limit, dealt)
        given = {name: getattr(made, name) or (getattr(run, name) if dealt else "") for name in ("study", "keep")}
        given |= {name: getattr(made, name) or getattr(run, name) for name in ("targets", "text")}
        if run.clusters:
            given["clusters"] = made.clusters or (run.clusters_file if dealt else "")
        for name, value in given.items():
            if not value:
                raise InputError(f"the site's configuration lacks {name}: --node-config '{name}=\"...\"'")
        for name in ("targets", "text"):
            if not getattr(made, name) and Path(given[name]).is_absolute():
                raise InputError(f"{name} {given[name]!r} comes from the server and is a path: name it at the site")
        return made.model_copy(update=given)

    @staticmethod
    def _check_alone(run: RunSettings) -> None:
        if run.missing:
            raise InputError("missing is for studies of one machine: a site of its own hides nothing")
        if run.holds:
            raise InputError("holds is for studies of one machine: a site of its own says what it holds")

    def objection(self, run: RunSettings) -> str:
        """Why the site does not take part in a run with this privacy, in words for its own log; empty where it does."""
        asked = run.protection()
        if not self.site:
            return ""
        if asked is not None and asked.seed is not None:
            return "privacy.seed comes from the server, which could take the noise off again: for simulations alone"
        if self.privacy and asked != _privacy_of(self.privacy):
            return f"the run's privacy is {run.privacy!r}, and this site's is {self.privacy!r}"
        return ""

    @property
    def person_names(self) -> list[str]:
        """People that were named."""
        return _words(self.people)


def _privacy_of(words: str) -> PrivacySettings | None:
    """Clipping and noise from words such as ``update_limit=4 update_noise=2``; None where there are none.

    Raises
    ------
    InputError
        For unknown settings, those without a use, and noise that only secure sums would make whole.
    """
    made = PrivacySettings.asked(parse_assignments(words.split()))
    if made is not None and made.shares > 1:
        raise InputError("privacy.shares needs secure sums, which are not available on this engine: leave it at 1")
    return made


def check_privacy(words: str, epsilon_limit: float, dealt: bool) -> None:
    """Refuse privacy of a site's own that cannot be, or has no use."""
    if dealt and (words or epsilon_limit):
        raise InputError("privacy and epsilon-limit have no use: where one study is dealt to sites, the run says them")
    if epsilon_limit and not words:
        raise InputError("epsilon-limit has no use without privacy: noise and delta would be the server's choice")
    made = _privacy_of(words)
    if made is not None and made.seed is not None:
        raise InputError("privacy.seed is for simulations: a site with a name takes part in no run that has one")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
