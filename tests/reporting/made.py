"""A made-up report: every part of the page, filled without a study."""

from __future__ import annotations

import numpy as np

from phosphene.reporting import brain, page, pictures
from phosphene.table import Table

HOSTILE = '<script>window.stolen = true</script> & "quoted" <img src=x onerror=alert(1)>'
DIRECTIONS = (("brain_to_image", "brain → image"), ("image_to_brain", "image → brain"))
METHODS = ("lite-mind", "ridge", "nearest", "mean")
COLOURS = {"red": (200, 60, 50), "green": (70, 150, 80), "blue": (60, 90, 190), "yellow": (220, 180, 60)}


def frame(number: int, side: int = 64) -> np.ndarray:
    """A disc or a square on a gradient: (side, side, 3) uint8."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] / side
    sky = np.stack([0.35 + 0.4 * y, 0.5 + 0.2 * x, 0.8 - 0.4 * y], axis=-1) + random.normal(0, 0.03, (side, side, 1))
    cx, cy = random.uniform(0.3, 0.7, 2)
    shape = ((x - cx) ** 2 + (y - cy) ** 2 < 0.05) if number % 2 else (abs(x - cx) + 0 * y < 0.2) & (abs(y - cy) < 0.2)
    colour = list(COLOURS.values())[number % 4]
    shaded = np.array(colour) / 255 * (1.15 - 0.5 * y[..., None])
    return np.round(255 * np.clip(np.where(shape[..., None], shaded, sky), 0, 1)).astype(np.uint8)


def caption(number: int) -> str:
    shape = "disc" if number % 2 else "square"
    return f"a {list(COLOURS)[number % 4]} {shape} in front of an evening sky, a little left of the middle"


def chart(metric: str, person: str, direction: str, seed: int, people: int = 3) -> page.Chart:
    random = np.random.default_rng(seed)
    if metric == "median rank":
        values, chance, top, percent = (4.0, 6.0, 38.0, 150.5), 150.5, 170.0, False
    else:
        values, chance, top = {
            "top-1": ((0.41, 0.35, 0.08, 0.003), 1 / 300, 0.5),
            "top-5": ((0.68, 0.62, 0.2, 0.017), 5 / 300, 0.8),
            "two-way": ((0.97, 0.95, 0.8, 0.5), 0.5, 1.0),
        }[metric]
        percent = True
    bars = []
    for tone, (method, value) in enumerate(zip(METHODS, values, strict=True)):
        spread = 0.08 * value
        dots = [page.Dot(f"sub-{k + 1:02d}", float(value + random.normal(0, spread))) for k in range(people)]
        bars.append(
            page.Bar(method, tone, value, value - spread, value + spread, tuple(dots) if person == page.ALL else ())
        )
    titles = {
        "top-1": "The right one is found first",
        "top-5": "The right one is among the first five",
        "two-way": "The right one beats a wrong one",
        "median rank": "Median rank of the right one",
    }
    return page.Chart(
        titles[metric], metric, person, direction, tuple(bars), chance, top, percent, metric == "median rank"
    )


def cases(people: tuple[str, ...], with_pixels: bool = True, hostile: bool = False) -> tuple[page.Case, ...]:
    made = []
    ranks = {"best": 1, "median": 3, "worst": 188}
    for p, person in enumerate(people[1:]):
        for group in page.GROUPS:
            for k in range(2):
                shown = 40 * p + 7 * k + ranks[group]
                picture = pictures.embed(frame(shown), f"Shown: {caption(shown)}") if with_pixels else None
                found = []
                for place in range(1, 6):
                    right = place == ranks[group]
                    item = shown if right else shown + 11 * place
                    found.append(
                        page.Candidate(
                            f"scene-{item:04d}",
                            HOSTILE if hostile and place == 2 else caption(item),
                            0.83 - 0.07 * place,
                            right,
                            pictures.embed(frame(item), f"Found at place {place}: {caption(item)}")
                            if with_pixels
                            else None,
                        )
                    )
                views = (person, page.ALL) if k == 0 else (person,)
                made.append(
                    page.Case(
                        person,
                        views,
                        group,
                        f"scene-{shown:04d}",
                        HOSTILE if hostile and k else caption(shown),
                        ranks[group],
                        300,
                        tuple(found),
                        picture,
                    )
                )
    return tuple(made)


def sheet(side: int = 40) -> Table:
    """Two hemispheres of side x side voxels with four regions."""
    u, v = np.meshgrid(np.linspace(0, 1.6, side), np.linspace(0, 1, side))
    u, v = np.tile(u.ravel(), 2), np.tile(v.ravel(), 2)
    columns = {"template_u": u, "template_v": v, "hemisphere": np.repeat(["L", "R"], side * side)}
    for number, name in enumerate(("V1", "V2", "LO", "PPA")):
        columns[f"roi_{name}"] = (u > 0.4 * number) & (u <= 0.4 * number + 0.4) & (v > 0.15) & (v < 0.85)
    return Table(columns)


def brains(people: tuple[str, ...]) -> tuple[page.BrainMap, ...]:
    table = sheet()
    values = np.exp(-((table["template_u"] - 0.5) ** 2 + (table["template_v"] - 0.5) ** 2) / 0.1)
    regions = {name[4:]: table[name] for name in table.columns if name.startswith("roi_")}
    first = page.BrainMap(
        people[1], brain.brain_views(values, table), brain.region_means(values, regions), "mean of its voxels"
    )
    index = np.argwhere(
        np.hypot(*np.meshgrid(np.arange(-15, 15), np.arange(-18, 18), indexing="ij"))[..., None] + np.zeros(20) < 14
    )
    strength = np.exp(-((index - [15, 6, 8]) ** 2).sum(axis=1) / 40)
    volume = Table({axis: index[:, k] for k, axis in enumerate("ijk")})
    second = page.BrainMap(people[2], brain.brain_views(strength, volume, np.diag([-2.0, 2.0, 2.0, 1.0])), ())
    rest = [page.BrainMap(name, (), (), absent="The voxels have no coordinates.") for name in people[3:]]
    return (first, second, *rest)


def full_page(with_pixels: bool = True, hostile: bool = False) -> page.Page:
    """Three people, both directions, every section."""
    people = (page.ALL, "sub-01", "sub-02", "sub-03")
    hero, charts, rows = [], [], []
    for d, (direction, _) in enumerate(DIRECTIONS):
        for p, person in enumerate(people):
            hero.append(chart("top-1", person, direction, 10 * d + p))
            for m, metric in enumerate(("top-5", "two-way", "median rank")):
                charts.append(chart(metric, person, direction, 100 + 10 * d + p + m))
            for bar in hero[-1].bars:
                rows.append(
                    page.Row(
                        bar.method,
                        bar.tone,
                        person,
                        direction,
                        "top-1",
                        "pool 300 × 30 draws, 3 repeats averaged",
                        bar.value - 0.01 * p,
                        1 / 300,
                        bar.low,
                        bar.high,
                        0.001 if bar.tone < 3 else None,
                        300,
                    )
                )
    steps = tuple(float(k) for k in range(1, 41))
    curves = (
        page.Curve(
            "Loss",
            "epoch",
            "loss",
            (
                page.Series("training", steps, tuple(3 * np.exp(-k / 9) + 0.4 for k in steps)),
                page.Series("validation", steps, tuple(3 * np.exp(-k / 8) + 0.9 + k / 90 for k in steps)),
            ),
            ((28.0, "best"),),
        ),
        page.Curve(
            "Validation top-1",
            "epoch",
            "top-1",
            (page.Series("validation", steps, tuple(0.4 * (1 - np.exp(-k / 9)) for k in steps)),),
            percent=True,
        ),
    )
    return page.Page(
        title="lite-mind on a made-up study",
        headline="From one person’s single response, the right one of 300 pictures is found first "
        "in 41 % of cases (chance 0.3 %).",
        standfirst="The strongest rival, ridge, finds it in 35 %. Mean over three people; "
        "95 % intervals over test stimuli: 37 to 45 % and 31 to 39 %.",
        method="lite-mind",
        people=people,
        directions=DIRECTIONS,
        hero=tuple(hero),
        charts=tuple(charts),
        rows=tuple(rows),
        facts=(
            page.Fact("People", "3"),
            page.Fact("Voxels", "2,000", "each person"),
            page.Fact("Stimuli shown", "1,500", "1,200 to train, 300 to test"),
            page.Fact("Repeats", "3", "of each test stimulus"),
            page.Fact("Target", "gabor", "32 tokens × 48"),
            page.Fact("Scaling", "by session", "fitted on training trials"),
        ),
        recorded=tuple(page.Person(name, 2000, 3600, 900, "3", "V1, V2, LO, PPA") for name in people[1:]),
        recorded_note=HOSTILE if hostile else "A virtual study: every response is simulated.",
        cases=cases(people, with_pixels, hostile),
        cases_note="Test stimuli by the rank of the right one: the best, those in the middle, the worst. "
        "Nothing was picked by hand.",
        curves=curves,
        brains=brains(people),
        brain_ramp=brain.RAMP,
        brain_note="Integrated gradients, averaged over test stimuli.",
        audits=(
            page.Audit(
                "Overlap of training and test",
                "good",
                "No stimulus, and no identical picture, is in both.",
                "Compared by content, not by name.",
            ),
            page.Audit(
                "Effective rank of predictions",
                "warn",
                "21 of 48 dimensions.",
                "A low rank means that few distinct answers are given.",
            ),
            page.Audit(
                "Noise ceiling", "unknown", "There is one presentation of each stimulus, so it cannot be measured."
            ),
        ),
        command="phosphene demo --seed 0 \\\n  --out demo",
        versions=(("phosphene", "0.1.0"), ("torch", "2.13.0"), ("Python", "3.11.7")),
        protocol=(("Split", "default"), ("Seed", "0"), ("Bootstrap", "1,000 draws over stimuli")),
        sources=(("Licence", "CC0"), ("Digest", "3f2a" * 8)),
        created="2026-01-01",
    )
