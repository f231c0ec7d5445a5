import {$, FIELDS, Failure, ask, base, button, call, counted, el, field, health, number, pathOf, read, say, size,
    token} from "./api.js";
import {choose, prepareUploads} from "./uploads.js";

const PAGE = 100;               // models on a page of a list
const GROUPS = 40;              // projects, applications or versions on one
const LOOK = [200, 20];         // models asked for to find those: at first, all of a small server, and after that
const LAST = "z".repeat(128);   // no name comes after it
const IN_MEMORY = 1 << 30;      // bytes of a model that a browser can hold
const FILTERS = ["q", "framework", "model_format", "corrupt"];
let names = [], query = new URLSearchParams();      // of the address: those of a list, a fourth for a file
let shown = {};                 // the model and the ETag of its info, or how many models there are
let turn = 0;                   // of what is shown: what comes too late is dropped

// ---- addresses: that of the page is the one that curl lists
const listOf = place => place.length ? `models/${pathOf(...place)}` : "models/list";
const addressOf = (place, search = "") => new URL((place.length || search ? listOf(place.slice(0, 3)) : "")
    + (search && `?${search}`) + (place[3] ? `#${pathOf(place[3])}` : ""), base);
const link = (place, text = place.at(-1)) => el("a", {href: addressOf(place), "data-go": ""}, text);
const namesOf = model => FIELDS.map(name => model[name]);
const isFiltered = () => [...query.keys()].some(key => FILTERS.includes(key) || key.startsWith("metadata."));
const guarded = action => event => action(event).catch(complain);

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
    const crumbs = [[], ...names].map((name, i) => link(names.slice(0, i), i ? name : "All projects"));
    crumbs.at(-1).setAttribute("aria-current", "page");
    $("crumbs").replaceChildren(...crumbs.map(crumb => el("li", {}, crumb)));
    $("title").textContent = isFiltered() ? `Search in ${names.join("/") || "all projects"}` : names.at(-1) ?? "Models";
    document.title = `${names.join("/") || "Models"} · Model repository`;
    showFilters();
    $("view").ariaBusy = "true";
    try {
        const show = names.length > 3 ? details : isFiltered() || names.length > 2 ? models : groups;
        const [summary, view] = await show(names);
        if (mine !== turn) return;
        $("delete").hidden = !names.length || isFiltered() || shown.total === 0;
        $("summary").textContent = summary;
        $("view").replaceChildren(view);
        $("notice").hidden = true;
    } catch (error) {
        if (mine !== turn) return;
        $("view").replaceChildren();
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
const row = (head, ...cells) => el("tr", {}, el("th", {scope: "row"}, head),
    cells.map(([className, content]) => el("td", {className}, content)));

/** A table with these columns and their classes. `more` gives rows, and `more.after` is set while there are others. */
async function table(caption, columns, more) {
    const body = el("tbody", {}, await more()), foot = el("div", {className: "more", hidden: !more.after});
    foot.append(button("Show more", guarded(async () => {
        const rows = await more();
        body.append(...rows);
        rows[0]?.querySelector("a").focus();
        foot.hidden = !more.after;
    })));
    const heads = Object.entries(columns).map(([text, className]) => el("th", {scope: "col", className}, text));
    const none = isFiltered() ? ["Nothing found", "No model here has all of that."]
        : ["There is nothing here yet", "Upload a file or a folder, or drop it anywhere on this page."];
    if (!body.rows.length) return el("p", {className: "card empty"}, el("b", {}, none[0]), none[1]);
    return el("div", {className: "card"}, el("table", {}, el("caption", {className: "unseen"}, caption),
        el("thead", {}, el("tr", {}, heads)), body), foot);
}

async function models(place) {
    const parameters = new URLSearchParams(query), isSearch = isFiltered();
    parameters.set("limit", PAGE);
    const more = async () => {
        const page = await read(`${listOf(place)}?${parameters}`);
        parameters.set("after", more.after = page.next);
        shown = {total: page.total_models};
        return page.models.map(model => row(
            [isSearch && el("small", {}, namesOf(model).slice(place.length, 3).join(" / ")), link(namesOf(model)),
                model.description && el("small", {dir: "auto"}, model.description)],
            ["", marks(model)], ["number", size(model.size)], ["number wide", number(model.details?.parameters)],
            ["wide", el("small", {dir: "auto"}, model.framework ?? "–")], ["number wide", when(model.uploaded_at)]));
    };
    const view = await table("Models", {Name: "", Format: "", Size: "number", Parameters: "number wide",
        Framework: "wide", Uploaded: "number wide"}, more);
    return [counted(shown.total, isSearch ? "model" : "file") + (isSearch ? " found" : ""), view];
}

/** Projects, applications or versions. Models come in order, so that a look at one leads behind all of its group. */
async function groups(place) {
    const level = place.length, mine = turn, kind = ["Project", "Application", "Version"][level];
    let seen = 0;
    const more = async () => {
        const found = [];
        do {
            const parameters = {limit: LOOK[seen ? 1 : 0], ...more.after && {after: more.after}};
            const page = await read(`${listOf(place)}?${new URLSearchParams(parameters)}`);
            if (!more.after) shown = {total: page.total_models};
            const members = Object.entries(Object.groupBy(page.models, model => model[FIELDS[level]]));
            const last = page.next && members.at(-1)[0];    // of which there may be more
            const aliases = Object.entries(page.aliases ?? {});
            found.push(...members.map(([name, some]) => [name, group([...place, name], some, name === last,
                aliases.filter(([, version]) => version === name).map(([alias]) => tag(alias)))]));
            more.after = page.next && [...place, last, ...Array(3 - level).fill(LAST)].join("/");
            seen += members.length;
        } while (more.after && found.length < GROUPS && mine === turn);
        if (level === 2) found.sort(([a], [b]) => b.localeCompare(a, "en", {numeric: true}));
        return found.map(([, element]) => element);
    };
    const view = await table(`${kind}s`, {[kind]: "", Models: "number", Size: "number wide", Formats: "wide",
        "Last upload": "number wide"}, more);
    return [`${counted(shown.total, "model")} in ${more.after ? "more than " : ""}${counted(seen, kind.toLowerCase())}`,
        view];
}

/** The row of a group. If the list was cut in it, the server counts its models, and no more is known of them. */
function group(place, some, isCut, tags) {
    const many = el("span", {}, isCut ? "…" : number(some.length));
    if (isCut) read(`${listOf(place)}?limit=1`).then(page => many.replaceChildren(number(page.total_models)), () => {});
    const formats = new Set(some.map(({format}) => format)), corrupt = some.some(model => model.corrupt);
    const [bytes, kinds, last] = isCut ? "–––" : [size(some.reduce((sum, model) => sum + model.size, 0)),
        [[...formats].map(format => marks({format})), marks({corrupt})],
        when(some.map(model => model.uploaded_at).sort().at(-1))];
    return row([link(place), " ", tags], ["number", many], ["number wide", bytes], ["wide", kinds],
        ["number wide", last]);
}

// ---- one model
const textOf = (value, count) => typeof value === "string" ? value
    : Array.isArray(value) ? value.map(each => textOf(each, count)).join("\n")
    : typeof value === "number" ? count(value) : JSON.stringify(value);
const facts = (entries, count = number) => el("dl", {}, Object.entries(entries).filter(([, value]) => value !== null)
    .map(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")),
        el("dd", {dir: "auto"}, value instanceof Node ? value : textOf(value, count))]));
const card = (title, actions, ...rest) => el("section", {className: "card"},
    el("div", {className: "bar"}, el("h2", {}, title), el("span", {className: "actions"}, actions)), rest);
const stateOf = model => model.corrupt ? [tag("corrupt", "bad"), " its bytes are not those that were uploaded"]
    : model.verified_at ? [tag("✓ intact", "good"), " ", when(model.verified_at)] : ["not yet"];

async function details(place) {
    const path = listOf(place), answer = await call("GET", `${path}/info`), model = await answer.json();
    shown = {model, etag: answer.headers.get("ETag")};
    const {warnings = [], ...contents} = model.details ?? {}, state = el("span", {}, stateOf(model));
    const warned = card("Look at this before you load it", [], el("ul", {},
        warnings.map(text => el("li", {dir: "auto"}, text))));
    warned.classList.add("warnings");
    const sum = el("span", {className: "mono"}, model.sha256 ?? "–");
    const file = facts({Size: `${number(model.size)} bytes`, "SHA-256": sum, Verified: state,
        Uploaded: when(model.uploaded_at), Changed: when(model.updated_at), "File name": model.filename});
    const actions = [await downloadButton(model, path), button("Verify", guarded(() => verify(path, state)))];
    const left = [warnings.length && warned, card("File", actions, file),
        card(`Contents: ${model.format ?? "not looked at"}`, [], facts(contents))];
    const right = [card("Description", el("span", {"data-write": ""}, button("Edit", openEdit)),
        el("p", {className: "prose", dir: "auto"}, model.description || "None yet."),
        facts({framework: model.framework, ...model.metadata}, String)),    // a year is no number of anything
    card("Lines to copy", [], el("ul", {className: "lines"}, await lines(model, path)))];
    return [[size(model.size), model.format].filter(Boolean).join(" · "),
        el("div", {className: "details"}, el("div", {}, left), el("div", {}, right))];
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
    return button(text, guarded(async () => {
        if (window.showSaveFilePicker) {
            const file = await showSaveFilePicker({suggestedName: name}).catch(() => null);     // null: closed
            return file && (await call("GET", href)).body.pipeTo(await file.createWritable());
        }
        if (model.size > IN_MEMORY) throw new Failure(-1, "This browser cannot save so large a model: use a line.");
        const copied = URL.createObjectURL(await (await call("GET", href)).blob());
        el("a", {href: copied, download: name}).click();
        setTimeout(() => URL.revokeObjectURL(copied), 60_000);
    }), "");
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
const showToken = () => { $("token").textContent = token() ? "Token ✓" : "Token"; };
function openToken() {
    const text = "It goes with each request of this page, and stays in this tab until you close it.";
    const entry = field("Token", "token", {type: "password", value: token(), pattern: "[!-~]*",
        title: "letters, digits and signs of ASCII, without spaces", autocomplete: "off"});
    ask("Token", "Use this token", [el("p", {}, text), entry], form => {
        sessionStorage.setItem("token", form.token.value.trim());
        showToken();
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
    const {model, etag} = shown, fields = [
        field("Description", "description", {value: model.description ?? "", rows: 3}, "textarea"),
        field("Framework", "framework", {value: model.framework ?? ""}),
        field("Metadata, as a JSON object", "metadata", {value: JSON.stringify(model.metadata, null, 2), rows: 8,
            className: "mono"}, "textarea")];
    ask("Edit", "Save", fields, async ({description, framework, metadata}) => {
        let changed;
        try {
            changed = JSON.parse(metadata.value || "{}");
        } catch (error) {
            throw new Failure(-1, `The metadata are not JSON: ${error.message}`);
        }
        const body = JSON.stringify({description: description.value || null, framework: framework.value || null,
            metadata: patchOf(model.metadata, changed)});   // if it is no object, the server refuses it
        await call("PATCH", `${listOf(names)}/info`, {body, headers: {"If-Match": etag}});
        render();
        say("Saved");
    });
}

function openDelete() {
    const {model, total} = shown, wanted = names.join("/"), typed = field(`To confirm, type ${wanted}`, "typed");
    const text = `${model ? "This model" : counted(total, "model")} will be gone for everybody, for good.`;
    ask("Delete", "Delete", [el("p", {}, text), typed], async () => {
        const headers = model?.sha256 ? {"If-Match": `"${model.sha256}"`} : {};
        await call("DELETE", listOf(names) + (model ? "" : "?recursive=true"), {headers});
        go(addressOf(names.slice(0, -1)));
        say("Deleted");
    }, "danger");
    typed.oninput = () => { $("dialog-go").disabled = typed.control.value !== wanted; };
    typed.oninput();
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
document.addEventListener("click", event => {
    const target = event.target.closest("a[data-go]");
    if (!target || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(target.href);
});
addEventListener("popstate", () => render(true));
document.querySelector(".skip").onclick = event => {     // without a change of the address
    event.preventDefault();
    $("title").focus();
};
$("dialog-close").onclick = () => $("dialog").close();
$("token").onclick = openToken;
$("delete").onclick = openDelete;
$("upload").onclick = () => choose(names);
prepareUploads({place: () => names, done: () => render()});
showToken();
health().then(state => {
    document.body.classList.toggle("read-only", state.read_only === true);
    $("health").replaceChildren(el("b", {className: state.status}, state.status),
        state.read_only ? " · read-only" : ` · ${size(state.free_bytes)} free`);
}, error => { $("health").textContent = error.message; }).then(() => render());
