import {$, FIELDS, Failure, ask, authorization, base, button, call, counted, el, field, pathOf, say, size} from "./api.js";

const WHOLE = 8 << 20;      // bytes of a file that is sent in one piece, because it is soon sent again
const PIECE = 32 << 20;     // bytes of a piece of a larger one: after each a refusal is heard, and a request costs little
const AT_ONCE = 3;          // uploads: a browser has 6 connections to a server, and the page wants some
const STALL = 60_000;       // ms without a byte sent after which a connection is given up
const SHOWN = 100;          // rows of files, at most
const TEMPORARY = [0, 408, 429, 502, 503, 504], ACTIVE = ["waiting", "running", "broken"];
const RULE = "1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _";
const uploads = [], idle = [];     // the latter: workers
const count = (...states) => uploads.filter(upload => states.includes(upload.state)).length;
let page, take;     // of the dialog: takes what is dropped on it

// Entries of uploads that are not over, for after a reload. By path, size and date: choosing the same file continues.
const unfinished = () => JSON.parse(localStorage.getItem("unfinished") ?? "{}");
const keep = (key, entry) => localStorage.setItem("unfinished", JSON.stringify({...unfinished(), [key]: entry}));
const keyOf = entry => [...entry.names, entry.size, entry.modified].join("/");

class Upload {
    state = "waiting"; sent = 0;

    constructor(entry, file) {
        Object.assign(this, {file, path: `models/${pathOf(...entry.names)}`, key: keyOf(entry)});
        this.entry = {...unfinished()[this.key], ...entry};
        this.bar = el("progress", {max: entry.size || 1, value: 0, ariaLabel: entry.names[3]});
        this.text = el("p", {className: "say"});
        this.button = button("Cancel", () => this.cancel(), "plain small");
        this.row = el("li", {}, el("div", {className: "bar"}, el("span", {className: "name", title: entry.names.join("/")},
            entry.names[3]), this.button), this.bar, this.text);
    }

    show(state, text) {
        this.state = this.row.className = state;
        this.text.textContent = text;
        this.button.hidden = !ACTIVE.includes(state);
        showTotal();
    }

    async run() {
        this.show("running", "reading the file…");
        $("rows").prepend(this.row);
        const sha256 = this.digest();
        sha256.catch(() => {});     // it is heard where it is awaited
        for (let wait = 1; this.state !== "cancelled"; wait = Math.min(2 * wait, 30)) {
            try {
                await (this.entry.size > WHOLE ? this.sendPieces(sha256) : this.sendWhole(sha256));
                this.show("done", `${size(this.entry.size)} uploaded`);
                break;
            } catch (error) {
                if (this.state === "cancelled") break;
                if (!TEMPORARY.includes(error.status)) return this.show("failed", error.status === 412
                    ? "There is a model of this name: tick “Replace models that exist” to replace it." : error.message);
                this.show("broken", `${error.message} Trying again in ${wait} s.`);
                await new Promise(done => {
                    this.wake = done;
                    setTimeout(done, 1000 * wait);
                    addEventListener("online", done, {once: true});
                });
            }
        }
        keep(this.key, undefined);
    }

    /** The digest, from a worker that reads the file beside the upload; the server compares it before it publishes. */
    digest() {
        const worker = this.worker = idle.pop() ?? new Worker(new URL("worker.js", import.meta.url));
        return new Promise((resolve, reject) => {
            worker.onmessage = ({data}) => resolve(data, this.worker = idle.push(worker) && null);
            worker.onerror = () => reject(new Failure(-1, "The file cannot be read, or has changed meanwhile."));
            worker.postMessage(this.file);
        });
    }

    async sendWhole(sha256) {
        return this.send(`${this.path}?${new URLSearchParams({...this.entry.fields, sha256: await sha256})}`, this.file, 0, {});
    }

    /** Sends what the server does not have yet. By an id and not by the digest, which is known only when all was read. */
    async sendPieces(sha256) {
        const ifMissing = error => { if (error.status !== 404) throw error; };
        const known = this.entry.id && await call("GET", `${this.path}/upload?id=${this.entry.id}`).catch(ifMissing);
        if (!known) {
            const headers = {...this.conditions(), "Upload-Length": this.entry.size};
            const made = await call("POST", `${this.path}/upload?${new URLSearchParams(this.entry.fields)}`, {headers}).catch(ifMissing);
            if (!made) return this.sendWhole(sha256);   // a server that keeps nothing of what breaks off
            this.entry.id = new URL(made.headers.get("Location"), base).searchParams.get("id");
            keep(this.key, this.entry);
        }
        for (let at = Number(known?.headers.get("Upload-Offset") ?? 0), isLast = false; !isLast;) {
            const end = Math.min(at + PIECE, this.entry.size), named = {id: this.entry.id};
            isLast = end === this.entry.size;
            if (isLast) named.sha256 = await sha256;
            const answer = await this.send(`${this.path}/upload?${new URLSearchParams(named)}`, this.file.slice(at, end), at,
                {"Upload-Offset": at, "Upload-Complete": isLast ? "?1" : "?0"});
            at = Number(answer.getResponseHeader("Upload-Offset") ?? end);
        }
    }

    conditions() {
        return {...authorization(), ...!this.entry.replace && {"If-None-Match": "*"}};
    }

    send(path, body, from, headers) {
        return new Promise((resolve, reject) => {
            const request = this.request = new XMLHttpRequest(), start = Date.now();     // fetch tells no progress
            let moved = start;
            const watch = setInterval(() => this.sent < from + body.size && Date.now() - moved > STALL && request.abort(), 1000);
            request.open("PUT", new URL(path, base));
            for (const [name, value] of Object.entries({...this.conditions(), ...headers})) request.setRequestHeader(name, value);
            request.upload.onprogress = ({loaded}) => {
                moved = Date.now();
                this.progress(from + loaded, loaded / Math.max(0.2, (moved - start) / 1000));
            };
            request.onload = () => request.status < 300 ? resolve(request) : reject(new Failure(request.status, request.responseText));
            request.onerror = request.onabort = () => reject(new Failure(0, "The connection broke."));
            request.onloadend = () => clearInterval(watch);
            request.send(body);
        });
    }

    progress(sent, speed) {
        const all = this.entry.size, s = (all - sent) / speed;
        const left = s < 90 ? `${Math.ceil(s)} s` : s < 5400 ? `${Math.ceil(s / 60)} min` : `${Math.ceil(s / 3600)} h`;
        this.sent = this.bar.value = sent;
        this.show("running", sent === all ? `${size(sent)} sent, being checked and stored…`
            : `${size(sent)} of ${size(all)} · ${size(Math.round(speed))}/s · ${left} left`);
    }

    cancel() {
        this.show("cancelled", "cancelled");
        this.request?.abort();
        this.worker?.terminate();
        this.wake?.();
        discard(this.entry);
    }
}

function discard(entry) {
    keep(keyOf(entry), undefined);
    if (entry.id) call("DELETE", `models/${pathOf(...entry.names)}/upload?id=${entry.id}`).catch(() => {});    // it expires
}

function showTotal() {
    const failed = count("failed");
    $("transfers").hidden = !$("rows").childElementCount;
    $("transfers-title").textContent = uploads.length ? `${count("done")} of ${counted(uploads.length - count("cancelled"), "file")} uploaded`
        + (failed ? `, ${failed} failed` : "") : "Uploads";
    $("transfers-end").textContent = count(...ACTIVE) ? "Cancel all" : "Clear";
}

async function begin(entry, file) {
    if (entry) uploads.push(new Upload(entry, file));
    if (count("running", "broken") >= AT_ONCE || !count("waiting")) return;
    await uploads.find(({state}) => state === "waiting").run();
    for (const row of [...$("rows").querySelectorAll(".done")].slice(SHOWN)) row.remove();
    if (!count(...ACTIVE)) {
        say($("transfers-title").textContent);
        page.done();
    }
    begin();
}

/** Opens the dialog for an upload to a place, with [path, file] pairs. */
export function choose(place, files = []) {
    const [single, list, total] = [field("Name", "model_name"), el("ul", {className: "files", tabIndex: 0}), el("p", {})];
    const parts = FIELDS.slice(0, 3).map((name, i) => field(["Project", "Application", "Version"][i], name, {required: true,
        value: place[i] ?? "", pattern: "[A-Za-z0-9_][A-Za-z0-9._+\\-]{0,127}", title: RULE}));
    const pick = (text, properties) => {
        const input = el("input", {type: "file", hidden: true, ...properties, onchange: () =>
            take([...input.files].map(file => [file.webkitRelativePath || file.name, file]))});
        return [input, button(text, () => input.click()), " "];
    };
    let chosen = [];

    /** Shows what was chosen. A folder that all of it is in gives its name to the version; hidden files stay out. */
    take = pairs => {
        const fit = name => name.replace(/[^\w.+-]/g, "_").replace(/^[.+-]/, "_").slice(0, 128), top = pairs[0]?.[0].split("/")[0];
        const isFolder = pairs.length > 0 && pairs.every(([path]) => path.startsWith(`${top}/`));
        if (isFolder) parts[2].control.value ||= fit(top);
        const rows = pairs.map(([path, file]) => [isFolder ? path.slice(top.length + 1) : path, file]).map(([path, file]) =>
            /(^|\/)\./.test(path) ? {path, name: "left out, because it is hidden"} : {path, file, name: path.split("/").map(fit).join("/")});
        chosen = rows.filter(({file}) => file);
        single.hidden = chosen.length !== 1;
        single.control.value = chosen[0]?.name ?? "";
        total.textContent = rows.length ? `${counted(chosen.length, "file")}, ${size(chosen.reduce((sum, {file}) => sum + file.size, 0))}`
            : "Nothing is chosen yet. A folder becomes a version: its files keep their paths.";
        list.replaceChildren(...rows.slice(0, SHOWN).map(({path, name, file}) => el("li", {}, el("span", {},
            path === name ? path : `${path} → ${name}`), file && el("span", {}, size(file.size)))), rows.length > SHOWN ? "…" : "");
        list.hidden = !rows.length;
    };
    ask("Upload", "Upload", [el("div", {className: "fields"}, parts), el("div", {className: "zone"}, el("p", {},
        "Drop files or a folder anywhere on the page, or"), pick("Choose files", {id: "files", multiple: true}),
        pick("Choose a folder", {id: "folder", webkitdirectory: true})), total, list, single,
        el("div", {className: "fields"}, field("Description", "description"), field("Framework", "framework")),
        field("Replace models that exist", "replace", {type: "checkbox"})], form => {
        if (chosen.length === 1) chosen[0].name = single.control.value;
        if (!chosen.length) throw new Failure(-1, "Choose a file or a folder first.");
        if (new Set(chosen.map(({name}) => name)).size < chosen.length) throw new Failure(-1, "Two files would get one name: rename one.");
        const names = parts.map(part => part.control.value), replace = form.replace.checked;
        const fields = Object.fromEntries(["description", "framework"].map(name => [name, form[name].value]).filter(([, text]) => text));
        for (const {name, file} of chosen)
            begin({names: [...names, name], fields, replace, size: file.size, modified: file.lastModified}, file);
    });
    take(files);
}

/** The files below an entry that was dropped, as [path, file]. */
async function filesIn(entry, path = entry.name) {
    if (entry.isFile) return [[path, await new Promise((done, failed) => entry.file(done, failed))]];
    const reader = entry.createReader(), found = [];
    for (let some = [0]; some.length;) {    // it gives 100 at a time
        some = await new Promise((done, failed) => reader.readEntries(done, failed));
        for (const child of some) found.push(...await filesIn(child, `${path}/${child.name}`));
    }
    return found;
}

/** A row for an upload that a reload or a crash broke off. */
function showUnfinished(entry) {
    const text = el("p", {className: "say"}, `This upload of ${size(entry.size)} broke off.`);
    const input = el("input", {type: "file", hidden: true, onchange: () => {
        const [file] = input.files;
        if (file.size !== entry.size || file.lastModified !== entry.modified)
            return text.replaceChildren("This is another file, or it has changed since.");
        row.remove();
        begin(entry, file);
    }});
    const drop = () => [row.remove(), discard(entry), showTotal()];
    const row = el("li", {}, el("p", {className: "name"}, entry.names.join("/")), text, input, el("div", {className: "actions"},
        button("Choose the file to continue", () => input.click(), "small"), button("Discard", drop, "plain small")));
    $("rows").append(row);
    showTotal();
}

/** `place` gives the names where the page is; `done` is called when all uploads are over. */
export function prepareUploads(given) {
    page = given;
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) addEventListener(kind, async event => {
        if (!event.dataTransfer.types.includes("Files") || document.body.classList.contains("read-only")) return;
        event.preventDefault();
        $("drop").hidden = kind === "drop" || (kind === "dragleave" && !event.relatedTarget);
        if (kind !== "drop") return;
        const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
        const files = (await Promise.all(entries.map(entry => filesIn(entry)))).flat();
        if ($("dialog").open && $("files")) take(files);
        else choose(page.place(), files);
    });
    addEventListener("beforeunload", event => { if (count("running", "broken")) event.preventDefault(); });
    $("transfers-end").onclick = () => {
        if (count(...ACTIVE)) return uploads.forEach(upload => ACTIVE.includes(upload.state) && upload.cancel());
        uploads.splice(0).forEach(upload => upload.row.remove());
        showTotal();
    };
    Object.values(unfinished()).forEach(showUnfinished);
}
