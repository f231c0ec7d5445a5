import {$, FIELDS, Failure, ask, base, button, call, counted, el, filledIn, health, jsonOf, number, pathOf, place, read,
    say, size, token} from "./api.js";
import {choose} from "./uploads.js";

const PAGE = 100;               // models asked for at once
const GROUPS = 40;              // projects or applications shown at once: for large ones, that takes as many requests
const LAST = "z".repeat(128);   // no name comes after it
const IN_MEMORY = 1 << 30;      // bytes of a model that a browser can hold
const OF_THE_HUB = /^(?!models\/|.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?\/\w([\w.-]{0,94}\w)?$/;   // docs/hub.md
const COLUMNS = [...["Project", "Application", "Version"].map(kind => [kind, "Models", "Size", "Last upload"]),
    ["Name", "Size", "Parameters", "Uploaded"]];
let turn = 0;                   // number of the view: what arrives for an earlier one is dropped

// ---- addresses: that of the page is the one that curl lists
const listOf = names => names.length ? `models/${pathOf(...names)}` : "models/list";
const addressOf = (names, search = "") =>
    base + listOf(names.slice(0, 3)) + (search && `?${search}`) + (names[3] ? `#${names[3]}` : "");
const link = (names, text = names.at(-1)) => el("a.go", text, {href: addressOf(names)});
const namesOf = told => FIELDS.map(name => told[name]).filter(Boolean);     // in an address, one may be an alias
const isFiltered = () => /[?&](?!limit=|after=)/.test(location.search);     // and not just a page of a list

function go(address) { history.pushState(null, "", address); render(true); }

/** Shows what is at the address: a view gives a summary, the content, and what a button deletes. */
async function render(hasMoved = false) {
    const mine = ++turn, names = place(), whole = names.join("/");
    $("crumbs").replaceChildren(link([], "All projects"), ...names.map((_, i) => link(names.slice(0, i + 1))));
    $("crumbs").lastChild.ariaCurrent = "page";
    $("title").textContent = isFiltered() ? `Search in ${whole || "all projects"}` : names.at(-1) ?? "Models";
    document.title = `${whole || "Models"} · Model repository`;
    $("has-token").hidden = !token();
    showFilters();
    $("view").ariaBusy = "true";
    const view = names.length > 3 ? details(names) : list(names);
    const {summary = "", content = "", remove = null, error} = await view.catch(error => ({error}));
    if (mine !== turn) return;
    $("summary").textContent = summary;
    $("view").replaceChildren(content);
    Object.assign($("delete"), {onclick: remove, hidden: !remove});
    $("notice").hidden = true;
    $("view").ariaBusy = "false";
    $("main").hidden = false;   // not before, so that nothing moves
    if (hasMoved) $("title").focus();
    if (error) throw error;     // shown like that of any other action
}

onunhandledrejection = event => {
    const {reason} = event, isOfToken = [401, 403].includes(reason.cause);
    if (reason instanceof Failure) event.preventDefault();      // anything else goes to the console, too
    $("notice").replaceChildren(el("span", reason.message),
        isOfToken ? button("Enter a token", openToken) : button("Try again", () => render()));
    $("notice").hidden = false;
};

// ---- lists
const when = time => time ? el("time", time.slice(0, 16).replace("T", " "), {dateTime: time, title: time}) : "–";
const tag = (text, kind = "") => el(`span.tag ${kind}`, text);

/** Models, or their groups. Lists are in order, so the last model of a page tells how to skip the rest of its group. */
async function list(names) {
    const query = new URLSearchParams(location.search), level = isFiltered() ? 3 : names.length, mine = turn, rows = [];
    const isFirst = !query.has("after");
    query.set("limit", PAGE);
    let page;
    do {
        page = await read(`${listOf(names)}?${query}`);
        const groups = [...Map.groupBy(page.models, model => listOf(namesOf(model).slice(0, level + 1))).values()];
        rows.push(...groups.map((some, i) => rowOf(some, level, page, level < 3 && i === groups.length - 1)));
        const last = namesOf(page.models.at(-1) ?? {}).slice(0, level + 1);
        query.set("after", [...last, ...Array(3 - level).fill(LAST)].join("/"));
    } while (page.next && (rows.length < GROUPS || level === 2) && mine === turn);      // the newest may come last
    // 2.0.0 comes after 2.0.0-rc.1, and before 2.0.0.1 and 2.0.0+cu121: so does a comma in this order
    const keyOf = row => `${row.querySelector("a").text.replace(/^v(?=\d)/i, "")},`;
    if (level === 2) rows.sort((a, b) => keyOf(b).localeCompare(keyOf(a), "en", {numeric: true}));
    const total = page.total_models, real = namesOf(page), models = counted(total, "model");
    const version = real[2] === names[2] ? "" : ` of version ${real[2]}`;     // which an alias stands for
    const groups = (isFirst && !page.next ? "" : "more than ") + counted(rows.length, COLUMNS[level][0].toLowerCase());
    const summary = isFiltered() ? `${models} found` : level < 3 ? `${models} in ${groups}`
        : counted(total, "file") + version;
    const heads = COLUMNS[level].map(text => el("th", text, {scope: "col"}));
    const next = page.next && el("a.go", "Next page", {href: addressOf(names, query)});
    const table = [el("table", [el("thead", el("tr", heads)), el("tbody", rows)]), el("p", next)];
    const empty = isFiltered() ? "Nothing found: no model here has all of that."
        : ["There is nothing here yet. ", el("span.write", "Upload files or a folder, or drop them anywhere here.")];
    return {summary, content: el("div.card", total ? table : el("p", empty)),
        remove: total && real.length && !isFiltered() ? () => openDelete(real, models) : null};
}

/** The row of a group, or of one model. If the page ends within a group, only the number of its models is shown. */
function rowOf(some, level, {next, aliases = {}}, isLast) {
    const names = namesOf(some[0]).slice(0, level + 1), {description, details} = some[0], isCut = isLast && next;
    const many = el("span", isCut ? "…" : number(some.length)), times = some.map(one => one.uploaded_at ?? "").sort();
    if (isCut) read(`${listOf(names)}?limit=1`).then(page => many.replaceChildren(number(page.total_models)), () => {});
    const formats = isCut ? [] : [...new Set(some.map(model => model.format))].filter(name => name !== "unknown");
    const warnings = some.flatMap(model => model.details?.warnings ?? []).length;
    const head = [isFiltered() && el("small", names.slice(place().length, 3).join(" / ")), link(names), " ",
        Object.keys(aliases).filter(alias => aliases[alias] === names[2]).map(alias => tag(alias)),
        formats.map(name => name && tag(name)), some.some(model => model.corrupt) && tag("corrupt", "bad"),
        warnings > 0 && tag(counted(warnings, "warning"), "warn"),
        level === 3 && description && el("small", description, {dir: "auto"})];
    const bytes = size(some.reduce((sum, model) => sum + model.size, 0));
    const cells = isCut ? [many, "–", "–"] : [...level < 3 ? [many, bytes] : [bytes, number(details?.parameters)],
        when(times.at(-1))];
    return el("tr", [el("th", head, {scope: "row"}), cells.map(cell => el("td", cell))]);
}

// ---- one model
const textOf = value => value instanceof Object ? Object.entries(value).map(([name, each]) =>
    (Array.isArray(value) ? "" : `${name}: `) + textOf(each)).join("\n") : String(value);
const facts = entries => el("dl", Object.entries(entries).filter(([, value]) => value != null).map(([name, value]) => [
    el("dt", name), el("dd", value instanceof Node ? value : textOf(value), {dir: "auto"})]));
const card = (title, actions, ...rest) =>
    el("section.card", [el("div.bar", [el("h2", title), el("span.actions", actions)]), rest]);
const stateOf = model => model.corrupt ? [tag("corrupt", "bad"), " its bytes are not those that were uploaded"]
    : model.verified_at ? [tag("✓ intact", "good"), " ", when(model.verified_at)] : ["not yet"];

async function details(place) {
    const answer = await call("GET", `${listOf(place)}/info`), etag = answer.headers.get("ETag");
    const model = await jsonOf(answer), names = namesOf(model), path = listOf(names);
    const {warnings = [], parameters, ...contents} = model.details ?? {}, state = el("span", stateOf(model));
    const lookOut = el("ul.warnings", warnings.map(text => el("li", text, {dir: "auto"})));
    const content = el("div.details", [
        warnings.length && card("Look at this before you load it", [], lookOut),
        card("File", [await downloadButton(model, path), button("Verify", () => verify(path, state))],
            facts({Size: `${number(model.size)} bytes`, Format: model.format, "SHA-256": model.sha256, Verified: state,
                Uploaded: when(model.uploaded_at), Changed: when(model.updated_at), "File name": model.filename})),
        card("Description", button("Edit", () => openEdit(path, model, etag), ".plain write"),
            el("p.prose", model.description || "None yet.", {dir: "auto"}),
            facts({framework: model.framework}), facts(model.metadata)),
        Object.keys(contents).length && card(`Contents: ${model.format}`, [],
            facts({parameters: parameters && number(parameters), ...contents})),
        card("Lines to copy", [], el("ul.lines", await lines(model, path)))]);
    return {summary: size(model.size), content, remove: () => openDelete(names, "This model", model.sha256)};
}

async function verify(path, state) {
    let progress = await call("POST", path.replace("models", "verify")).then(jsonOf);
    for (; progress.running || progress.waiting.length; progress = await read("verify")) {
        state.textContent = `being verified… ${Math.floor(100 * progress.done_bytes / progress.total_bytes || 0)} %`;
        await new Promise(done => setTimeout(done, 300));
        if (!state.isConnected) return;
    }
    state.replaceChildren(...stateOf(await read(`${path}/info`)));
    say(`Verified: ${state.textContent}`);
}

/** A link sends no token; where one is needed, the page fetches the model itself. */
async function downloadButton(model, path) {
    const name = model.filename ?? model.model_name.split("/").at(-1);
    const text = model.corrupt ? "Download it as it is" : "Download";
    const href = base + path + (model.corrupt ? "?allow_corrupt=true" : "");
    const isFree = !token() || await fetch(href, {method: "HEAD", credentials: "omit"}).then(({ok}) => ok, () => false);
    if (isFree) return el("a.button", text, {href, download: name});
    return button(text, async () => {
        if (window.showSaveFilePicker) {
            const file = await showSaveFilePicker({suggestedName: name}).catch(() => null);     // null: closed
            return file && (await call("GET", href)).body.pipeTo(await file.createWritable());
        }
        if (model.size > IN_MEMORY) throw new Failure("This browser cannot save so large a model: copy a line.");
        const copied = URL.createObjectURL(await (await call("GET", href)).blob());
        el("a", [], {href: copied, download: name}).click();
        setTimeout(() => URL.revokeObjectURL(copied), 60_000);
    }, "");
}

async function lines(model, path) {
    const [project, app, version, file] = namesOf(model), name = file.split("/").at(-1), url = base + path;
    const secret = token() ? '-H "Authorization: Bearer $TOKEN" ' : "";
    const hasHub = OF_THE_HUB.test(`${project}/${app}`)
        && await read(`api/models/${pathOf(project, app)}/revision/${version}`).then(() => true, () => false);
    const given = {
        curl: `curl -f -C - ${secret}-O ${url}`,
        wget: `wget -c ${secret.replace("-H ", "--header=")}${url}`,
        Python: `import requests\nwith requests.get("${url}", stream=True${secret && ', auth=("any", TOKEN)'}) as r, `
            + `open("${name}", "wb") as f:\n    r.raise_for_status()\n    f.writelines(r.iter_content(1 << 20))`,
        "Check it": model.sha256 && `curl -fsS ${secret}${url}.sha256 | sha256sum -c`,
        "Hugging Face Hub": hasHub && `HF_ENDPOINT=${base.href.slice(0, -1)} ${secret && "HF_TOKEN=$TOKEN "}`
            + `hf download ${project}/${app} ${file} --revision ${version}`,
    };
    return Object.entries(given).filter(([, text]) => text).map(([title, text]) => {
        const line = el("code", text), copy = button("Copy", () => {
            getSelection().selectAllChildren(line);
            document.execCommand("copy");       // navigator.clipboard is there with TLS alone
            say(copy.textContent = "Copied");
        });
        copy.ariaLabel = `Copy the line for ${title}`;
        return el("li", [el("div.bar", [title, copy]), el("pre", line)]);
    });
}

// ---- changes
const openToken = () => ask("authorizing", {token: token()}, async entered => {
    sessionStorage.setItem("token", entered.token);
    render();
});

/** The merge patch (RFC 7396) from one JSON value to another. What is the same is not in it, and keeps its digits. */
function patchOf(old, now) {
    if (![old, now].every(value => Object.prototype.toString.call(value) === "[object Object]")) return now;
    const isSame = ([name, value]) => Object.hasOwn(old, name) && JSON.stringify(old[name]) === JSON.stringify(value);
    const gone = Object.keys(old).filter(name => !Object.hasOwn(now, name)).map(name => [name, null]);
    const changed = Object.entries(now).filter(entry => !isSame(entry));
    return Object.fromEntries([...gone, ...changed.map(([name, value]) => [name, patchOf(old[name], value)])]);
}

function openEdit(path, {description, framework, metadata}, etag) {
    const form = ask("editing", {description, framework, metadata: JSON.stringify(metadata, null, 2)}, async given => {
        const changed = await new Response(given.metadata || "{}").json()
            .catch(error => { throw new Failure(`The metadata are not JSON: ${error.message}`); });
        const texts = Object.entries(patchOf(shown, given)).map(([name, text]) => [name, text || null]);
        const body = JSON.stringify({...Object.fromEntries(texts), metadata: patchOf(metadata, changed)});
        await call("PATCH", `${path}/info`, {body, headers: {"If-Match": etag}});
        render();
        say("Saved");
    });
    const shown = Object.fromEntries(new FormData(form));   // a field may have other line ends than it was given
}

function openDelete(names, what, sha256) {
    const headers = sha256 && {"If-Match": `"${sha256}"`}, query = names.length > 3 ? "" : "?recursive=true";
    const form = ask("deleting", {}, async () => {
        await call("DELETE", listOf(names) + query, {headers});
        go(addressOf(names.slice(0, -1)));
        say("Deleted");
    });
    $("lost").textContent = `${what} will be gone for everybody, for good.`;
    $("wanted").textContent = names.join("/");
    $("dialog-go").disabled = true;
    form.typed.oninput = ({target}) => { $("dialog-go").disabled = target.value !== names.join("/"); };
}

// ---- search
function showFilters() {
    const form = $("search"), query = new URLSearchParams(location.search);
    for (const [key, value] of [...query])
        if (key.startsWith("metadata.")) query.set("metadata", `${key.slice("metadata.".length)}=${value}`);
    for (const name of new FormData(form).keys()) form[name].value = query.get(name) ?? "";
    $("filters").open = false;
}
$("search").onsubmit = event => {
    event.preventDefault();
    const {metadata = "", ...given} = Object.fromEntries(filledIn(event.target)), [key, ...value] = metadata.split("=");
    if (key) given[`metadata.${key}`] = value.join("=");
    go(addressOf(place().slice(0, 3), new URLSearchParams(given)));
};
$("search").addEventListener("invalid", () => { $("filters").open = true; }, true);     // or the reason is hidden
$("search").onreset = () => go(addressOf(place().slice(0, 3)));
$("search").q.addEventListener("search", event => {     // its cross, too
    if (!event.target.value && isFiltered()) $("search").requestSubmit();
});

// ---- the beginning
const ACTIONS = {token: openToken, upload: () => choose(), close: () => $("dialog").close(),
    skip: () => $("title").focus()};
document.onclick = event => {
    const target = event.target.closest(".go, [data-do]");
    if (!target || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    if (target.dataset.do) ACTIONS[target.dataset.do]();
    else go(target.href);
};
onpopstate = () => render(true);
addEventListener("uploaded", () => render());
health().then(state => {
    document.body.classList.toggle("read-only", state.read_only === true);
    $("health").replaceChildren(el(`b.${state.status}`, state.status),
        state.read_only ? " · read-only" : ` · ${size(state.free_bytes)} free`);
}, error => { $("health").textContent = error.message; }).then(() => render());
