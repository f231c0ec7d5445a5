import {$, FIELDS, Failure, ask, base, button, call, counted, el, health, number, pathOf, read, say, size,
    token} from "./api.js";
import {choose, prepareUploads} from "./uploads.js";

const PAGE = 100;               // models on a page of a list
const GROUPS = 40;              // projects, applications or versions on one
const LOOK = [200, 20];         // models asked for to find those: at first, all of a small server, and after that
const LAST = "z".repeat(128);   // no name comes after it
const IN_MEMORY = 1 << 30;      // bytes of a model that a browser can hold
const COLUMNS = [...["Project", "Application", "Version"].map(kind => [kind, "Models", "Size", "Last upload"]),
    ["Name", "Size", "Parameters", "Framework", "Uploaded"]];
const FILTERS = ["q", "framework", "model_format", "corrupt"];
let names = [], query = new URLSearchParams();      // of the address: those of a list, a fourth for a file
let shown = {};                 // the model and the ETag of its info, or how many models there are
let turn = 0;                   // of what is shown: what comes too late is dropped

// ---- addresses: that of the page is the one that curl lists
const listOf = place => place.length ? `models/${pathOf(...place)}` : "models/list";
const addressOf = (place, search = "") => new URL((place.length || search ? listOf(place.slice(0, 3)) : "")
    + (search && `?${search}`) + (place[3] ? `#${pathOf(place[3])}` : ""), base);
const link = (place, text = place.at(-1)) => el("a", {href: addressOf(place), className: "go"}, text);
const namesOf = model => FIELDS.map(name => model[name]);
const isFiltered = () => [...query.keys()].some(key => FILTERS.includes(key) || key.startsWith("metadata."));

function go(address) { history.pushState(null, "", address); render(true); }

function readAddress() {
    const path = location.pathname.slice(base.pathname.length).split("/").filter(Boolean).slice(1);
    names = path.join() === "list" ? [] : path.map(decodeURIComponent);
    query = new URLSearchParams(location.search);
    const encoded = location.hash.slice(1).replaceAll("+", "%2B");
    const file = new URLSearchParams(`file=${encoded}`).get("file");    // which throws nothing if it is malformed
    // a browser takes dots out of an address: it would be about another model than the one that is shown
    if (path.length === 3 && file && !file.split("/").some(part => /^\.\.?$/.test(part))) names.push(file);
}

async function render(hasMoved = false) {
    const mine = ++turn;
    readAddress();
    $("crumbs").replaceChildren(link([], "All projects"), ...names.map((_, i) => link(names.slice(0, i + 1))));
    $("crumbs").lastChild.setAttribute("aria-current", "page");
    $("title").textContent = isFiltered() ? `Search in ${names.join("/") || "all projects"}` : names.at(-1) ?? "Models";
    document.title = `${names.join("/") || "Models"} · Model repository`;
    $("has-token").hidden = !token();
    showFilters();
    $("view").ariaBusy = "true";
    try {
        const [summary, view] = await (names.length > 3 ? details : list)(names);
        if (mine !== turn) return;
        $("delete").hidden = !names.length || isFiltered() || shown.total === 0;
        $("summary").textContent = summary;
        $("view").replaceChildren(view);
        $("notice").hidden = true;
    } catch (error) {
        if (mine !== turn) return;
        $("view").replaceChildren();
        $("summary").textContent = "";
        $("delete").hidden = true;
        complain(error);
    }
    $("view").ariaBusy = "false";
    $("main").hidden = false;   // not before, so that nothing moves
    if (hasMoved) $("title").focus();
}

function complain(error) {
    if (!(error instanceof Failure)) throw error;
    $("notice").replaceChildren(el("span", {}, error.message), [401, 403].includes(error.status)
        ? button("Enter a token", openToken) : button("Try again", () => render()));
    $("notice").hidden = false;
}

// ---- lists
const when = time => time ? el("time", {dateTime: time, title: time}, time.slice(0, 16).replace("T", " ")) : "–";
const tag = (text, kind = "") => el("span", {className: `tag ${kind}`}, text);
const marks = ({format, corrupt, details}) => [format && format !== "unknown" && tag(format),
    corrupt && tag("corrupt", "bad"),
    details?.warnings?.length && tag(counted(details.warnings.length, "warning"), "warn")];
const row = (head, ...cells) => el("tr", {}, el("th", {scope: "row"}, head), cells.map(cell => el("td", {}, cell)));

/** Models, or the groups that they are in. They come in order, so that a look at one leads behind all of its group. */
async function list(place) {
    const level = isFiltered() ? 3 : place.length, [kind, ...columns] = COLUMNS[level], mine = turn;
    const parameters = new URLSearchParams(query), body = el("tbody", {}), foot = el("div", {className: "more"});
    let seen = 0;
    const more = async () => {
        const rows = [];
        do {
            parameters.set("limit", level === 3 ? PAGE : LOOK[seen ? 1 : 0]);
            const page = await read(`${listOf(place)}?${parameters}`), aliases = Object.entries(page.aliases ?? {});
            const groups = Object.entries(Object.groupBy(page.models, model => model[FIELDS[level]]));
            const last = page.next && groups.at(-1)[0];     // of which there may be more
            rows.push(...level === 3 ? page.models.map(model => [model.model_name, rowOf(model, place)])
                : groups.map(([name, some]) => [name, rowOfGroup([...place, name], some, name === last,
                    aliases.filter(([, version]) => version === name).map(([alias]) => tag(alias)))]));
            const behind = [...place, last, ...Array(3 - level).fill(LAST)].join("/");
            parameters.set("after", level === 3 ? page.next : behind);
            shown = {total: page.total_models};
            foot.hidden = !page.next;
            seen += groups.length;
        } while (!foot.hidden && rows.length < GROUPS && mine === turn);
        if (level === 2) rows.sort(([a], [b]) => b.localeCompare(a, "en", {numeric: true}));
        body.append(...rows.map(([, row]) => row));
        return rows;
    };
    await more();
    foot.append(button("Show more", async () => (await more())[0]?.[1].querySelector("a").focus()));
    const groups = `${foot.hidden ? "" : "more than "}${counted(seen, kind.toLowerCase())}`;
    const summary = level < 3 ? `${counted(shown.total, "model")} in ${groups}`
        : isFiltered() ? `${counted(shown.total, "model")} found` : counted(shown.total, "file");
    if (!body.rows.length) return [summary, el("p", {className: "card more"}, isFiltered()
        ? "Nothing found: no model here has all of that."
        : "There is nothing here yet. Upload a file or a folder, or drop it anywhere on this page.")];
    const heads = el("tr", {}, [kind, ...columns].map(text => el("th", {scope: "col"}, text)));
    return [summary, el("div", {className: "card"}, el("table", {}, el("thead", {}, heads), body), foot)];
}

const rowOf = (model, place) => row([
    isFiltered() && el("small", {}, namesOf(model).slice(place.length, 3).join(" / ")), link(namesOf(model)), " ",
    marks(model), model.description && el("small", {dir: "auto"}, model.description),
], size(model.size), number(model.details?.parameters), model.framework ?? "–", when(model.uploaded_at));

/** The row of a group. If the list was cut in it, the server counts its models, and no more is known of them. */
function rowOfGroup(place, some, isCut, tags) {
    if (isCut) {
        const many = el("span", {}, "…");
        read(`${listOf(place)}?limit=1`).then(page => many.replaceChildren(number(page.total_models)), () => {});
        return row([link(place), " ", tags], many, "–", "–");
    }
    const formats = [...new Set(some.map(({format}) => format))], sum = (all, model) => all + model.size;
    return row([link(place), " ", tags, formats.map(format => marks({format})),
        marks({corrupt: some.some(({corrupt}) => corrupt)})],
    number(some.length), size(some.reduce(sum, 0)), when(some.map(model => model.uploaded_at).sort().at(-1)));
}

// ---- one model
const textOf = value => value instanceof Object ? Object.entries(value).map(([name, each]) =>
    (Array.isArray(value) ? "" : `${name}: `) + textOf(each)).join("\n") : String(value);
const facts = entries => el("dl", {}, Object.entries(entries).filter(([, value]) => value != null)
    .map(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")),
        el("dd", {dir: "auto"}, value instanceof Node ? value : textOf(value))]));
const card = (title, actions, ...rest) => el("section", {className: "card"},
    el("div", {className: "bar"}, el("h2", {}, title), el("span", {className: "actions"}, actions)), rest);
const stateOf = model => model.corrupt ? [tag("corrupt", "bad"), " its bytes are not those that were uploaded"]
    : model.verified_at ? [tag("✓ intact", "good"), " ", when(model.verified_at)] : ["not yet"];

async function details(place) {
    const path = listOf(place), answer = await call("GET", `${path}/info`), model = await answer.json();
    shown = {model, etag: answer.headers.get("ETag")};
    const {warnings = [], parameters, ...contents} = model.details ?? {}, state = el("span", {}, stateOf(model));
    const warned = card("Look at this before you load it", [], el("ul", {},
        warnings.map(text => el("li", {dir: "auto"}, text))));
    warned.classList.add("warnings");
    const actions = [await downloadButton(model, path), button("Verify", () => verify(path, state))];
    const cards = [warnings.length && warned,
        card("File", actions, facts({Size: `${number(model.size)} bytes`, "SHA-256": model.sha256, Verified: state,
            Uploaded: when(model.uploaded_at), Changed: when(model.updated_at), "File name": model.filename})),
        card("Description", button("Edit", openEdit, "plain write"),
            el("p", {className: "prose", dir: "auto"}, model.description || "None yet."),
            facts({framework: model.framework, ...model.metadata})),
        Object.keys(contents).length && card(`Contents: ${model.format}`, [],
            facts({parameters: parameters && number(parameters), ...contents})),
        card("Lines to copy", [], el("ul", {className: "lines"}, await lines(model, path)))];
    return [[size(model.size), model.format].filter(Boolean).join(" · "),
        el("div", {className: "details"}, cards.filter(Boolean))];
}

async function verify(path, state) {
    let progress = await (await call("POST", path.replace("models", "verify"))).json();
    for (; progress.running || progress.waiting.length; progress = await read("verify")) {
        const share = progress.done_bytes / progress.total_bytes || 0;
        state.textContent = `being verified… ${Math.floor(100 * share)} %`;
        await new Promise(done => setTimeout(done, 300));
        if (!state.isConnected) return;
    }
    const model = await read(`${path}/info`);
    state.replaceChildren(...stateOf(model));
    say(model.corrupt ? "The model is corrupt" : "The model is intact");
}

/** A link sends no token; where one is needed, the page fetches the model itself. */
async function downloadButton(model, path) {
    const name = model.filename ?? model.model_name.split("/").at(-1);
    const text = model.corrupt ? "Download it as it is" : "Download";
    const href = new URL(model.corrupt ? `${path}?allow_corrupt=true` : path, base);
    if (!token() || (await fetch(href, {method: "HEAD", credentials: "omit"})).ok)
        return el("a", {className: "button", href, download: name}, text);
    return button(text, async () => {
        if (window.showSaveFilePicker) {
            const file = await showSaveFilePicker({suggestedName: name}).catch(() => null);     // null: closed
            return file && (await call("GET", href)).body.pipeTo(await file.createWritable());
        }
        if (model.size > IN_MEMORY) throw new Failure("This browser cannot save so large a model: use a line.");
        const copied = URL.createObjectURL(await (await call("GET", href)).blob());
        el("a", {href: copied, download: name}).click();
        setTimeout(() => URL.revokeObjectURL(copied), 60_000);
    }, "");
}

async function lines(model, path) {
    const [project, app, version, file] = namesOf(model), name = file.split("/").at(-1), url = new URL(path, base).href;
    const secret = token() ? '-H "Authorization: Bearer $TOKEN" ' : "";
    const hasHub = await read(`api/models/${pathOf(project, app)}/revision/${version}`).then(() => true, () => false);
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
        const line = el("code", {}, text), copy = button("Copy", () => {
            getSelection().selectAllChildren(line);
            document.execCommand("copy");       // navigator.clipboard is there with TLS alone
            say(copy.textContent = "Copied");
        }, "plain small");
        copy.ariaLabel = `Copy the line for ${title}`;
        return el("li", {}, el("div", {className: "bar"}, title, copy), el("pre", {}, line));
    });
}

// ---- changes
function openToken() {
    ask("authorizing", {token: token()}, async form => {
        sessionStorage.setItem("token", form.token.value.trim());
        render();
    });
}

/** The merge patch (RFC 7396) from one JSON value to another. What is the same is not in it, and keeps its digits. */
function patchOf(old, now) {
    if (![old, now].every(value => Object.prototype.toString.call(value) === "[object Object]")) return now;
    const has = Object.hasOwn, textAt = (value, name) => JSON.stringify(value[name]);
    const isSame = name => has(old, name) && textAt(old, name) === textAt(now, name);
    return Object.fromEntries([...Object.keys(old).filter(name => !has(now, name)).map(name => [name, null]),
        ...Object.keys(now).filter(name => !isSame(name)).map(name => [name, patchOf(old[name], now[name])])]);
}

function openEdit() {
    const {model: {description, framework, metadata}, etag} = shown, text = JSON.stringify(metadata, null, 2);
    ask("editing", {description, framework, metadata: text}, async form => {
        let changed;
        try {
            changed = JSON.parse(form.metadata.value || "{}");
        } catch (error) {
            throw new Failure(`The metadata are not JSON: ${error.message}`);
        }
        const body = JSON.stringify({description: form.description.value || null,
            framework: form.framework.value || null, metadata: patchOf(metadata, changed)});
        await call("PATCH", `${listOf(names)}/info`, {body, headers: {"If-Match": etag}});
        render();
        say("Saved");
    });
}

function openDelete() {
    const {model, total} = shown, wanted = names.join("/");
    const form = ask("deleting", {}, async () => {
        const headers = model?.sha256 ? {"If-Match": `"${model.sha256}"`} : {};
        await call("DELETE", listOf(names) + (model ? "" : "?recursive=true"), {headers});
        go(addressOf(names.slice(0, -1)));
        say("Deleted");
    });
    $("lost").textContent = `${model ? "This model" : counted(total, "model")} will be gone for everybody, for good.`;
    $("wanted").textContent = wanted;
    form.oninput = () => { $("dialog-go").disabled = form.typed.value !== wanted; };
    form.oninput();
}

// ---- search
function showFilters() {
    const form = $("search"), [name, value] = [...query].find(([key]) => key.startsWith("metadata.")) ?? [];
    for (const key of FILTERS) form[key].value = query.get(key) ?? "";
    form.metadata.value = name ? `${name.slice("metadata.".length)}=${value}` : "";
    $("filters").toggleAttribute("data-active", isFiltered() && [...query.keys()].some(key => key !== "q"));
    $("filters").open = false;
}
$("search").onsubmit = event => {
    event.preventDefault();
    const form = event.target, [key, ...value] = form.metadata.value.split("=");
    const given = FILTERS.map(name => [name, form[name].value.trim()]).filter(([, text]) => text);
    if (key) given.push([`metadata.${key}`, value.join("=")]);
    go(addressOf(names.slice(0, 3), new URLSearchParams(given).toString()));
};
$("search").onreset = () => go(addressOf(names.slice(0, 3)));
$("search").q.addEventListener("search", event => {     // its cross, too
    if (!event.target.value && query.has("q")) $("search").requestSubmit();
});

// ---- the beginning
const ACTIONS = {token: openToken, delete: openDelete, upload: () => choose(names), close: () => $("dialog").close(),
    skip: () => $("title").focus()};
document.onclick = event => {
    const target = event.target.closest(".go, [data-do]");
    if (!target || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    if (target.dataset.do) ACTIONS[target.dataset.do]();
    else go(target.href);
};
onpopstate = () => render(true);
onunhandledrejection = event => {
    complain(event.reason);     // which throws what the page does not know
    event.preventDefault();
};
prepareUploads({place: () => names, done: () => render()});
health().then(state => {
    document.body.classList.toggle("read-only", state.read_only === true);
    $("health").replaceChildren(el("b", {className: state.status}, state.status),
        state.read_only ? " · read-only" : ` · ${size(state.free_bytes)} free`);
}, error => { $("health").textContent = error.message; }).then(() => render());
