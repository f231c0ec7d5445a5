import {$, FIELDS, Failure, ask, base, button, call, counted, el, field, health, pathOf, read, say, size, token} from "./api.js";
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

function decoded(part) {
    try {
        return decodeURIComponent(part);
    } catch {
        return part;    // no name, as the server will say
    }
}

function go(address) {
    history.pushState(null, "", address);
    render(true);
}

async function render(hasMoved = false) {
    const mine = ++turn, path = location.pathname.slice(base.pathname.length).split("/").filter(Boolean).slice(1);
    const file = path.length === 3 && location.hash.length > 1 ? [location.hash.slice(1)] : [];
    names = path.join() === "list" ? [] : [...path, ...file].map(decoded);
    query = new URLSearchParams(location.search);
    $("crumbs").replaceChildren(...[[], ...names].map((name, i) => el("li", {}, link(names.slice(0, i), i ? name : "All projects"))));
    $("crumbs").lastChild.firstChild.setAttribute("aria-current", "page");
    $("title").textContent = isFiltered() ? `Search in ${names.join("/") || "all projects"}` : names.at(-1) ?? "Models";
    document.title = `${names.join("/") || "Models"} · Model repository`;
    $("delete").hidden = !names.length || isFiltered();
    showFilters();
    $("view").ariaBusy = "true";
    try {
        const [summary, view] = await (names.length > 3 ? details : isFiltered() || names.length > 2 ? models : groups)(names);
        if (mine !== turn) return;
        $("summary").textContent = summary;
        $("view").replaceChildren(view);
        $("notice").hidden = true;
    } catch (error) {
        if (mine !== turn) return;
        $("view").replaceChildren();
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
const guarded = action => event => action(event).catch(complain);

// ---- lists

const when = time => time ? el("time", {dateTime: time, title: time}, time.slice(0, 16).replace("T", " ")) : "–";
const tag = (text, kind = "") => el("span", {className: `tag ${kind}`}, text);
const marks = ({format, corrupt, details}) => [format && format !== "unknown" && tag(format), corrupt && tag("corrupt", "bad"),
    details?.warnings?.length && tag(counted(details.warnings.length, "warning"), "warn")];
const number = value => value?.toLocaleString("en") ?? "–";
const row = (place, head, ...cells) => el("tr", {}, el("th", {scope: "row"}, head.slice(0, -1), link(place), head.at(-1)),
    cells.map(([className, content]) => el("td", {className}, content)));

/** A table with these columns and their classes. `more` gives rows; while there are further ones, `more.after` is set. */
async function table(caption, columns, more) {
    const body = el("tbody", {}, await more()), foot = el("div", {className: "more", hidden: !more.after}, button("Show more",
        guarded(async () => {
            const rows = await more();
            body.append(...rows);
            rows[0]?.querySelector("a").focus();
            foot.hidden = !more.after;
        })));
    if (!body.rows.length) return el("p", {className: "card empty"}, el("b", {}, isFiltered() ? "Nothing found" : "There is nothing here yet"),
        isFiltered() ? "No model here has all of that." : "Upload a file or a folder, or drop it anywhere on this page.");
    return el("div", {className: "card"}, el("table", {}, el("caption", {className: "unseen"}, caption), el("thead", {}, el("tr", {},
        Object.entries(columns).map(([text, className]) => el("th", {scope: "col", className}, text)))), body), foot);
}

async function models(place) {
    const parameters = new URLSearchParams(query), isSearch = isFiltered();
    parameters.set("limit", PAGE);
    const more = async () => {
        const page = await read(`${listOf(place)}?${parameters}`);
        parameters.set("after", more.after = page.next);
        shown = {total: page.total_models};
        return page.models.map(model => row(namesOf(model),
            [isSearch && el("small", {}, namesOf(model).slice(place.length, 3).join(" / ")),
                model.description && el("small", {dir: "auto"}, model.description)],
            ["", marks(model)], ["number", size(model.size)], ["number wide", number(model.details?.parameters)],
            ["wide", el("small", {dir: "auto"}, model.framework ?? "–")], ["number wide", when(model.uploaded_at)]));
    };
    const view = await table("Models", {Name: "", Format: "", Size: "number", Parameters: "number wide", Framework: "wide",
        Uploaded: "number wide"}, more);
    return [counted(shown.total, isSearch ? "model" : "file") + (isSearch ? " found" : ""), view];
}

/** Projects, applications or versions. Models come in order, so that a look at one leads behind all of its group. */
async function groups(place) {
    const level = place.length, mine = turn, kind = ["Project", "Application", "Version"][level];
    let seen = 0;
    const more = async () => {
        const found = [];
        do {
            const parameters = new URLSearchParams({limit: LOOK[seen ? 1 : 0], ...more.after && {after: more.after}});
            const page = await read(`${listOf(place)}?${parameters}`);
            if (!more.after) shown = {total: page.total_models};
            const members = Object.entries(Object.groupBy(page.models, model => model[FIELDS[level]]));
            found.push(...members.map(([name, some], i) => group([...place, name], some, page.next && i === members.length - 1)));
            more.after = page.next && [...place, members.at(-1)[0], ...Array(3 - level).fill(LAST)].join("/");
            seen += members.length;
        } while (more.after && found.length < GROUPS && mine === turn);
        return level < 2 ? found : found.sort((a, b) => b.name.localeCompare(a.name, "en", {numeric: true}));
    };
    const view = await table(`${kind}s`, {[kind]: "", Models: "number", Size: "number wide", Formats: "wide",
        "Last upload": "number wide"}, more);
    return [`${counted(shown.total, "model")} in ${more.after ? "more than " : ""}${counted(seen, kind.toLowerCase())}`, view];
}

/** The row of a group. If the list was cut in it, the server counts its models, and no more is known of them. */
function group(place, some, isCut) {
    const many = el("span", {}, isCut ? "…" : number(some.length)), formats = [...new Set(some.map(({format}) => format))];
    if (isCut) read(`${listOf(place)}?limit=1`).then(page => many.replaceChildren(number(page.total_models)), () => many.replaceChildren("?"));
    const cells = isCut ? ["–", "–", "–"] : [size(some.reduce((sum, model) => sum + model.size, 0)),
        [formats.map(format => marks({format})), some.some(({corrupt}) => corrupt) && tag("corrupt", "bad")],
        when(some.map(model => model.uploaded_at).sort().at(-1))];
    return Object.assign(row(place, [], ["number", many], ["number wide", cells[0]], ["wide", cells[1]], ["number wide", cells[2]]),
        {name: place.at(-1)});
}

// ---- one model

const facts = entries => el("dl", {}, Object.entries(entries).filter(([, value]) => value !== null).map(([name, value]) =>
    [el("dt", {}, name.replaceAll("_", " ")), el("dd", {dir: "auto"}, value instanceof Node ? value : textOf(value))]));
const card = (title, actions, ...rest) => el("section", {className: "card"},
    el("div", {className: "bar"}, el("h2", {}, title), el("span", {className: "actions"}, actions)), rest);

function textOf(value) {
    if (Array.isArray(value) && value.every(item => typeof item === "string")) return value.join("\n");
    return typeof value === "string" ? value : typeof value === "number" ? number(value) : JSON.stringify(value);
}

async function details(place) {
    const path = listOf(place), answer = await call("GET", `${path}/info`), model = await answer.json();
    shown = {model, etag: answer.headers.get("ETag")};
    const {warnings = [], ...contents} = model.details ?? {}, state = el("span", {}, stateOf(model));
    return [[size(model.size), model.format].filter(Boolean).join(" · "), el("div", {className: "details"},
        el("div", {},
            warnings.length && Object.assign(card("Look at this before you load it", [], el("ul", {}, warnings.map(text =>
                el("li", {dir: "auto"}, text)))), {className: "card warnings"}),
            card("File", [await downloadButton(model, path), button("Verify", guarded(() => verify(path, state)))], facts({
                Size: `${number(model.size)} bytes`, "SHA-256": el("span", {className: "mono"}, model.sha256 ?? "not known"),
                Verified: state, Uploaded: when(model.uploaded_at), Changed: when(model.updated_at), "File name": model.filename})),
            card(`Contents: ${model.format ?? "not looked at"}`, [], facts(contents))),
        el("div", {},
            card("Description", el("span", {"data-write": ""}, button("Edit", openEdit)), el("p", {className: "prose", dir: "auto"},
                model.description || "None yet."), facts({framework: model.framework, ...model.metadata})),
            card("Lines to copy", [], el("ul", {className: "lines"}, await lines(model, path)))))];
}

const stateOf = model => model.corrupt ? [tag("corrupt", "bad"), " its bytes are not those that were uploaded"]
    : model.verified_at ? [tag("✓ intact", "good"), " ", when(model.verified_at)] : ["not yet"];

async function verify(path, state) {
    let progress = await call("POST", path.replace("models", "verify")).then(answer => answer.json());
    for (; progress.running || progress.waiting.length; progress = await read("verify")) {
        state.textContent = `being verified… ${Math.floor(100 * (progress.done_bytes / progress.total_bytes || 0))} %`;
        await new Promise(done => setTimeout(done, 300));
        if (!state.isConnected) return;
    }
    const model = await read(`${path}/info`);
    state.replaceChildren(...stateOf(model));
    say(model.corrupt ? "The model is corrupt" : "The model is intact");
}

/** A link sends no token; where one is needed, the page fetches the model itself. */
async function downloadButton(model, path) {
    const name = model.filename ?? model.model_name.split("/").at(-1), text = model.corrupt ? "Download it as it is" : "Download";
    const href = new URL(model.corrupt ? `${path}?allow_corrupt=true` : path, base);
    if (!token() || (await fetch(href, {method: "HEAD", credentials: "omit"})).ok)
        return el("a", {className: "button", href, download: name}, text);
    return button(text, guarded(async () => {
        if (window.showSaveFilePicker) {
            const file = await showSaveFilePicker({suggestedName: name}).catch(() => null);     // null: closed
            return file && (await call("GET", href)).body.pipeTo(await file.createWritable());
        }
        if (model.size > IN_MEMORY) throw new Failure(-1, "This browser cannot save so large a model with a token: use a line.");
        const copied = URL.createObjectURL(await (await call("GET", href)).blob());
        el("a", {href: copied, download: name}).click();
        setTimeout(() => URL.revokeObjectURL(copied), 60_000);
    }), "");
}

async function lines(model, path) {
    const url = new URL(path, base).href, name = model.model_name.split("/").at(-1), [project, app, version] = namesOf(model);
    const secret = token() ? '-H "Authorization: Bearer $TOKEN" ' : "";
    const hasHub = await read(`api/models/${pathOf(project, app)}/revision/${version}`).then(() => true, () => false);
    const given = {
        curl: `curl -f -C - ${secret}-O ${url}`,
        wget: `wget -c ${secret.replace("-H ", "--header=")}${url}`,
        Python: `import requests\nwith requests.get("${url}", stream=True${secret && ', auth=("any", TOKEN)'}) as r, `
            + `open("${name}", "wb") as f:\n    r.raise_for_status()\n    f.writelines(r.iter_content(1 << 20))`,
        "Check it": model.sha256 && `curl -fsS ${secret}${url}.sha256 | sha256sum -c`,
        "Hugging Face Hub": hasHub && `HF_ENDPOINT=${base.href.slice(0, -1)} ${secret && "HF_TOKEN=$TOKEN "}`
            + `hf download ${project}/${app} ${model.model_name} --revision ${version}`,
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
    ask("Token", "Use this token", [el("p", {}, "It goes with each request of this page, and stays in this tab until you close it."),
        field("Token", "token", {type: "password", value: token(), autocomplete: "off"})], form => {
        sessionStorage.setItem("token", form.token.value.trim());
        showToken();
        render();
    });
}

function openEdit() {
    const {model, etag} = shown;
    ask("Edit", "Save", [field("Description", "description", {value: model.description ?? "", rows: 3}, "textarea"),
        field("Framework", "framework", {value: model.framework ?? ""}),
        field("Metadata, as a JSON object", "metadata", {value: JSON.stringify(model.metadata, null, 2), rows: 8, className: "mono"},
            "textarea")], async form => {
        let metadata;
        try {
            metadata = JSON.parse(form.metadata.value || "{}");
        } catch (error) {
            throw new Failure(-1, `The metadata are not JSON: ${error.message}`);
        }
        for (const name of Object.keys(model.metadata)) if (metadata) metadata[name] ??= null;   // RFC 7396: takes it away
        const body = JSON.stringify({description: form.description.value || null, framework: form.framework.value || null, metadata});
        await call("PATCH", `${listOf(names)}/info`, {body, headers: {"If-Match": etag}});
        render();
        say("Saved");
    });
}

function openDelete() {
    const {model} = shown, path = listOf(names), wanted = names.join("/"), typed = field(`To confirm, type ${wanted}`, "typed");
    ask("Delete", "Delete", [el("p", {}, `${model ? "This model" : counted(shown.total, "model")} will be gone for everybody, for good.`),
        typed], async () => {
        const headers = model?.sha256 ? {"If-Match": `"${model.sha256}"`} : {};
        await call("DELETE", model ? path : `${path}?recursive=true`, {headers});
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
    form.metadata.value = name ? `${name.slice(9)}=${value}` : "";
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
$("dialog-close").onclick = () => $("dialog").close();
$("token").onclick = openToken;
$("delete").onclick = openDelete;
$("upload").onclick = () => choose(names);
prepareUploads({place: () => names, done: () => render()});
showToken();
render();
health().then(state => {
    document.body.classList.toggle("read-only", state.read_only === true);
    $("health").replaceChildren(el("b", {className: state.status}, state.status),
        state.read_only ? " · read-only" : ` · ${size(state.free_bytes)} free`);
}, error => { $("health").textContent = error.message; });
