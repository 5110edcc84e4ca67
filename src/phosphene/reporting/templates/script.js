"use strict";
// The page reads without this script. It adds: choice of person, direction and cases (kept in the address, so a view can
// be linked: #person=sub-02&direction=image_to_brain&cases=worst), a sortable table, enlarged pictures, a copy button.
(() => {
  const $ = (selector) => document.querySelector(selector);
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const select = $("#person");
  const radios = (name) => all(`input[name="${name}"]`);
  const chosen = (name) => radios(name).find((radio) => radio.checked)?.value;

  function state() {
    return { person: select?.value, direction: chosen("direction"), cases: chosen("cases") };
  }

  function apply() {
    const { direction, cases } = state();
    const person = String(select ? select.selectedIndex : 0);
    for (const element of all("main [data-person], main [data-direction]")) {
      const people = (element.dataset.person ?? "").split(" ").filter(Boolean);
      const wrongPerson = people.length > 0 && !people.includes(person);
      const wrongDirection = direction && element.dataset.direction && element.dataset.direction !== direction;
      element.classList.toggle("off", Boolean(wrongPerson || wrongDirection));
    }
    for (const group of all("[data-cases]")) {
      group.classList.toggle("off-screen", cases !== "every" && group.dataset.cases !== cases);
    }
  }

  function announce() {
    const rows = all("#scores tbody tr").filter((row) => !row.classList.contains("off")).length;
    const words = [select && select.selectedOptions[0].textContent, chosen("direction")?.replaceAll("_", " ")];
    const status = $("#status");
    if (status) status.textContent = `Showing ${words.filter(Boolean).join(", ")}: ${rows} scores`;
  }

  function remember() {
    const entries = Object.entries(state()).filter(([, value]) => value);
    try {
      history.replaceState(null, "", `#${new URLSearchParams(entries)}`);
    } catch {
      // a viewer that shows the page inside another document may refuse; the choice still holds
    }
  }

  function recall() {
    const hash = decodeURI(location.hash.slice(1));
    if (!hash.includes("=")) return;
    const wanted = new URLSearchParams(hash);
    if (select && all("option", select).some((option) => option.value === wanted.get("person"))) {
      select.value = wanted.get("person");
    }
    for (const name of ["direction", "cases"]) {
      for (const radio of radios(name)) if (radio.value === wanted.get(name)) radio.checked = true;
    }
  }

  function choose() {
    apply();
    announce();
    remember();
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const key = (row, column) => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? (cell.dataset.value === "" ? NaN : Number(cell.dataset.value)) : cell.textContent.trim();
    };
    const compare = (a, b) => {
      if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return a - b;
    };
    all("thead th", table).forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = Array.from(body.rows).map((row) => [key(row, column), row]);
        const known = rows.filter(([value]) => !Number.isNaN(value)).sort(([a], [b]) => (down ? -1 : 1) * compare(a, b));
        body.append(...known.map(([, row]) => row), ...rows.filter(([value]) => Number.isNaN(value)).map(([, row]) => row));
      });
    });
  }

  function makeEnlargeable(picture, lens) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "zoom";
    button.title = "Enlarge";
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => {
      const large = lens.querySelector("img");
      large.src = picture.src;
      large.alt = picture.alt;
      lens.querySelector("figcaption").textContent = picture.alt;
      lens.showModal();
    });
  }

  function copyCommand(event) {
    const done = () => {
      event.target.textContent = "Copied";
      setTimeout(() => (event.target.textContent = "Copy"), 1500);
    };
    const byHand = () => getSelection().selectAllChildren($("#command"));
    if (navigator.clipboard) navigator.clipboard.writeText($("#command").textContent).then(done, byHand);
    else byHand();
  }

  recall();
  apply();
  select?.addEventListener("change", choose);
  for (const name of ["direction", "cases"]) for (const radio of radios(name)) radio.addEventListener("change", choose);
  window.addEventListener("hashchange", () => {
    recall();
    apply();
    announce();
  });
  all("table.sortable").forEach(makeSortable);
  const lens = $("#lens");
  all("img.pic").forEach((picture) => makeEnlargeable(picture, lens));
  lens?.addEventListener("click", (event) => event.target === lens && lens.close());
  $("#copy")?.addEventListener("click", copyCommand);
})();
