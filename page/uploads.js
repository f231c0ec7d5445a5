import {$, FIELDS, Failure, ask, base, button, call, counted, el, filledIn, pathOf, place, read, say,
    size} from "./api.js";

const PIECES = [256 << 10, 64 << 20];   // bytes of one piece, at least and at most
const SECONDS = 2;          // that a piece should take: progress is shown, and a refusal noticed, after each of them
const STALL = 300_000;      // ms after which a piece is given up; to store the last one, the server may read all again
const AT_ONCE = 3;          // uploads: a browser opens 6 connections to a server, and the page itself needs some
const SHOWN = 100;          // rows of files, at most
const TEMPORARY = [0, 408, 429, 502, 503, 504], ACTIVE = ["waiting", "running", "broken"];
const NAME = "[A-Za-z0-9_][A-Za-z0-9._+\\-]{0,127}";
const RULE = "1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _";
const uploads = [];
const count = (...states) => uploads.filter(upload => states.includes(upload.state)).length;
let take;       // of the dialog: takes what is dropped on it

class Upload {
    state = "waiting";
    canceller = new AbortController();

    constructor(names, file, fields, mayReplace) {
        const model = `models/${pathOf(...names)}`;
        // the key under which its id is kept, so that it continues after a reload, or when the browser was closed
        const key = [base.pathname, model, file.size, file.lastModified].join(" ");
        Object.assign(this, {model, file, fields, mayReplace, key});
        this.bar = el("progress", [], {max: file.size || 1, value: 0, ariaLabel: names[3]});
        this.text = el("p.say");
        const head = [el("span.name", names[3], {title: names.join("/")}), button("Cancel", () => this.cancel())];
        this.row = el("li", [el("div.bar", head), this.bar, this.text]);
    }

    get path() { return `${this.model}/upload?${new URLSearchParams({...this.fields, ...this.id && {id: this.id}})}`; }

    show(state, text) {
        this.state = this.row.className = state;
        this.text.textContent = text;
        showTotal();
    }

    /** A function that shows the progress of what is sent from this offset of the file on. */
    meter(from) {
        const start = Date.now(), all = this.file.size;
        return at => {
            const speed = (at - from) / Math.max(0.2, (Date.now() - start) / 1000), s = (all - at) / speed;
            const [left, unit] = s < 90 ? [s, "s"] : s < 5400 ? [s / 60, "min"] : [s / 3600, "h"];
            this.bar.value = at;
            this.show("running", `Sending: ${size(at)} of ${size(all)} · ${size(Math.round(speed))}/s · `
                + `${Math.ceil(left)} ${unit} left`);
        };
    }

    async run() {
        $("rows").prepend(this.row);
        this.show("running", "Sending…");
        for (let wait = 1; ; wait = Math.min(2 * wait, 30)) {
            try {
                await this.send();
                return this.show("done", `${size(this.file.size)} uploaded`);
            } catch (error) {
                const isThere = await this.file.slice(0, 1).arrayBuffer().catch(() => false);
                if (!isThere) return this.show("failed", "The file has changed meanwhile: choose it again.");
                if (error.cause === 412) return this.compare();
                const isGone = this.id && error.cause === 404;      // cancelled in another tab: it begins again
                if (!isGone && !TEMPORARY.includes(error.cause)) return this.show("failed", error.message);
                this.show("broken", `${error.message} · Trying again in ${wait} s`);
            }
            const over = AbortSignal.any([this.canceller.signal, AbortSignal.timeout(1000 * wait)]);
            if (!over.aborted) await new Promise(done => { over.onabort = done; });
            if (this.canceller.signal.aborted) return;
        }
    }

    /** Shows whether the model that is there already may be this file. */
    async compare() {
        const model = await read(`${this.model}/info`).catch(() => ({}));       // not everybody may read it
        if (model.size === this.file.size) return this.show("done", "A model of this size is there already.");
        this.show("failed", "There is a model of this name: tick “Replace models that exist” to replace it.");
    }

    /** Sends what the server does not have yet. The first piece begins the upload, and the answer to it has the id. */
    async send() {
        const {file, key} = this, condition = !this.mayReplace && {"If-None-Match": "*"};
        this.id = localStorage.getItem(key);
        const known = this.id && await call("HEAD", this.path).catch(error => {
            if (error.cause !== 404) throw error;
        });
        if (!known) this.id = null;
        let at = Number(known?.headers.get("Upload-Offset") ?? 0), bytes = PIECES[0];
        const show = this.meter(at);
        while (!this.id || at < file.size) {
            const body = file.slice(at, at + bytes), start = Date.now();
            const headers = {"Upload-Offset": at, "Upload-Length": file.size, ...condition};
            const signal = AbortSignal.any([this.canceller.signal, AbortSignal.timeout(STALL)]);
            const answer = await call(this.id ? "PUT" : "POST", this.path, {body, headers, signal});
            this.id ??= new URL(answer.headers.get("Location"), base).searchParams.get("id");
            localStorage.setItem(key, this.id);
            show(at += body.size);
            const inTime = body.size * SECONDS * 1000 / (Date.now() - start);
            bytes = Math.max(PIECES[0], Math.min(inTime, PIECES[1]));
        }
        localStorage.removeItem(key);
    }

    /** Ends the upload, and removes its row. */
    cancel() {
        this.canceller.abort();
        // without this, the server drops what it has in some hours
        if (this.id && ACTIVE.includes(this.state)) call("DELETE", this.path).catch(() => {});
        uploads.splice(uploads.indexOf(this), 1);
        this.row.remove();
        showTotal();
    }
}

function showTotal() {
    const failed = count("failed");
    $("transfers").hidden = !uploads.length;
    $("transfers-title").textContent = `${count("done")} of ${counted(uploads.length, "file")} uploaded`
        + (failed ? `, ${failed} failed` : "");
    $("transfers-end").textContent = count(...ACTIVE) ? "Cancel all" : "Clear";
}
$("transfers-end").onclick = () => { for (const upload of [...uploads]) upload.cancel(); };
addEventListener("beforeunload", event => { if (count("running", "broken")) event.preventDefault(); });

/** Runs what waits, some at a time; tells the page when everything is over. */
async function runNext() {
    const next = uploads.find(({state}) => state === "waiting");
    if (!next || count("running", "broken") >= AT_ONCE) return;
    await next.run();
    for (const row of [...$("rows").querySelectorAll(".done")].slice(SHOWN)) row.remove();
    if (count(...ACTIVE)) return runNext();
    say($("transfers-title").textContent);
    dispatchEvent(new Event("uploaded"));
}

/** Opens the dialog for an upload to where the page is, with [path, file] pairs. */
export function choose(files = []) {
    let chosen = [];
    const form = ask("uploading", {}, async () => {
        const {project_id, app_name, version, model_name, replace, ...fields} = Object.fromEntries(filledIn(form));
        if (model_name) chosen[0].name = model_name;
        if (!chosen.length) throw new Failure("Choose a file or a folder first.");
        if (new Set(chosen.map(({name}) => name)).size < chosen.length)
            throw new Failure("Two files would get one name: rename one.");
        for (const {name, file} of chosen) {
            uploads.push(new Upload([project_id, app_name, version, name], file, fields, replace));
            runNext();
        }
    });
    const names = place().map((name, i) => i === 2 && /^(@.*|latest)$/.test(name) ? "" : name);  // only for reading
    for (const [i, name] of FIELDS.entries()) Object.assign(form[name], {required: true, title: RULE,
        value: names[i] ?? "", pattern: i < 3 ? NAME : `${NAME}(/${NAME})*`});

    /** Shows what was chosen. If it is all in one folder, that names the version; hidden files are left out. */
    take = pairs => {
        const fit = name => name.replace(/[^\w.+-]/g, "_").replace(/^[.+-]/, "_").slice(0, 128);
        const top = pairs[0]?.[0].split("/")[0], isFolder = pairs.every(([path]) => path.startsWith(`${top}/`));
        if (top && isFolder) form.version.value ||= fit(top);
        chosen = pairs.map(([path, file]) => ({file, path: isFolder ? path.slice(top.length + 1) : path}))
            .filter(({path}) => !/(^|\/)\./.test(path)).sort((a, b) => a.path < b.path ? -1 : 1);
        for (const each of chosen) each.name = each.path.split("/").map(fit).join("/");
        form.model_name.disabled = chosen.length !== 1;
        form.model_name.value = chosen[0]?.name ?? "";
        const bytes = chosen.reduce((sum, {file}) => sum + file.size, 0), hidden = pairs.length - chosen.length;
        if (pairs.length) $("chosen").textContent = `${counted(chosen.length, "file")}, ${size(bytes)}`
            + (hidden ? `, and ${counted(hidden, "hidden file")} left out` : "");
        const lines = chosen.slice(0, SHOWN).map(({path, name}) => path === name ? path : `${path} → ${name}`);
        $("names").replaceChildren(...lines.map(line => el("li", line)));
    };
    form.onchange = ({target: {files}}) => files && take(Array.from(files, f => [f.webkitRelativePath || f.name, f]));
    take(files);
}

/** The files below an entry that was dropped, as [path, file]. */
async function* filesIn(entry, path = entry.name) {
    if (entry.isFile) return yield [path, await new Promise((done, failed) => entry.file(done, failed))];
    const reader = entry.createReader(), next = () => new Promise((done, failed) => reader.readEntries(done, failed));
    for (let some; (some = await next()).length;)      // it gives 100 at a time
        for (const child of some) yield* filesIn(child, `${path}/${child.name}`);
}

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) addEventListener(kind, async event => {
    if (!event.dataTransfer.types.includes("Files") || document.body.classList.contains("read-only")) return;
    event.preventDefault();
    $("drop").hidden = kind === "drop" || (kind === "dragleave" && !event.relatedTarget);
    if (kind !== "drop") return;
    const entries = Array.from(event.dataTransfer.items, item => item.webkitGetAsEntry()).filter(Boolean), files = [];
    for (const entry of entries) files.push(...await Array.fromAsync(filesIn(entry)));
    if ($("dialog").open && $("names")) take(files);
    else if (!$("dialog").open) choose(files);
});
