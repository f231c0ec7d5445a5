import {$, FIELDS, Failure, ask, authorization, base, button, call, counted, el, field, pathOf, say,
    size} from "./api.js";

const WHOLE = 8 << 20;      // bytes of a file that is sent in one piece, because it is soon sent again
const PIECE = 32 << 20;     // bytes of a piece of a larger one: a refusal comes after each, and a request costs little
const AT_ONCE = 3;          // uploads: a browser has 6 connections to a server, and the page wants some
const STALL = 60_000;       // ms without a byte sent after which a connection is given up
const SHOWN = 100;          // rows of files, at most
const TEMPORARY = [0, 408, 429, 502, 503, 504], ACTIVE = ["waiting", "running", "broken"];
const RULE = {pattern: "[A-Za-z0-9_][A-Za-z0-9._+\\-]{0,127}",
    title: "1 to 128 of A-Z a-z 0-9 . _ + -, beginning with a letter, digit or _"};
const uploads = [], idle = [];     // the latter: workers
const count = (...states) => uploads.filter(upload => states.includes(upload.state)).length;
let page, take;     // the latter, of the dialog: takes what is dropped on it

// What is known of uploads that are not over, for after a reload: choosing the same file continues.
const unfinished = () => JSON.parse(localStorage.getItem("unfinished") ?? "{}");
const keep = (key, entry) => localStorage.setItem("unfinished", JSON.stringify({...unfinished(), [key]: entry}));
const keyOf = entry => [...entry.names, entry.size, entry.modified].join("/");

class Upload {
    sent = 0;

    constructor(entry, file) {
        Object.assign(this, {file, path: `models/${pathOf(...entry.names)}`, key: keyOf(entry), state: "waiting"});
        this.entry = {...unfinished()[this.key], ...entry};
        $(`unfinished ${this.key}`)?.remove();
        this.bar = el("progress", {max: entry.size || 1, value: 0, ariaLabel: entry.names[3]});
        this.text = el("p", {className: "say"});
        this.button = button("Cancel", () => this.cancel(), "plain small");
        const name = el("span", {className: "name", title: entry.names.join("/")}, entry.names[3]);
        this.row = el("li", {}, el("div", {className: "bar"}, name, this.button), this.bar, this.text);
    }

    show(state, text) {
        this.state = this.row.className = state;
        this.text.textContent = text;
        this.button.hidden = !ACTIVE.includes(state);
        showTotal();
    }

    async run() {
        $("rows").prepend(this.row);
        this.show("running", "reading the file…");
        const sha256 = this.digest();
        sha256.catch(() => {});     // it is heard where it is awaited
        for (let wait = 1; ACTIVE.includes(this.state); wait = Math.min(2 * wait, 30)) {
            try {
                await (this.entry.size > WHOLE ? this.sendPieces(sha256) : this.sendWhole(sha256));
                this.show("done", `${size(this.entry.size)} uploaded`);
            } catch (error) {
                if (this.state === "cancelled") break;
                const exists = "There is a model of this name: tick “Replace models that exist” to replace it.";
                if (!TEMPORARY.includes(error.status))
                    return this.show("failed", error.status === 412 ? exists : error.message);
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
        const query = new URLSearchParams({...this.entry.fields, sha256: await sha256});
        return this.send(`${this.path}?${query}`, this.file, 0, {});
    }

    /** Sends what the server does not have. By an id and not by the digest, which is known only when all was read. */
    async sendPieces(sha256) {
        const ifMissing = error => { if (error.status !== 404) throw error; }, {id, size: length} = this.entry;
        const known = id && await call("GET", `${this.path}/upload?id=${id}`).catch(ifMissing);
        if (!known) {
            const headers = {"Upload-Length": length, ...this.conditions()};
            const query = new URLSearchParams(this.entry.fields);
            const made = await call("POST", `${this.path}/upload?${query}`, {headers}).catch(ifMissing);
            if (!made) return this.sendWhole(sha256);   // a server that keeps nothing of what breaks off
            this.entry.id = new URL(made.headers.get("Location"), base).searchParams.get("id");
            keep(this.key, this.entry);
        }
        for (let at = Number(known?.headers.get("Upload-Offset") ?? 0), isLast = false; !isLast;) {
            const end = Math.min(at + PIECE, length), query = new URLSearchParams({id: this.entry.id});
            isLast = end === length;
            if (isLast) query.set("sha256", await sha256);
            const headers = {"Upload-Offset": at, "Upload-Complete": isLast ? "?1" : "?0"};
            const answer = await this.send(`${this.path}/upload?${query}`, this.file.slice(at, end), at, headers);
            at = Number(answer.getResponseHeader("Upload-Offset") ?? end);
        }
    }

    conditions() { return {...authorization(), ...!this.entry.replace && {"If-None-Match": "*"}}; }

    send(path, body, from, headers) {
        const request = this.request = new XMLHttpRequest(), start = Date.now();     // fetch tells no progress
        let moved = start;
        return new Promise((resolve, reject) => {
            const isStalled = () => this.sent < from + body.size && Date.now() - moved > STALL;
            const watch = setInterval(() => isStalled() && request.abort(), 1000);
            request.open("PUT", new URL(path, base));
            Object.entries({...this.conditions(), ...headers}).forEach(pair => request.setRequestHeader(...pair));
            request.upload.onprogress = ({loaded}) => {
                moved = Date.now();
                this.progress(from + loaded, loaded / Math.max(0.2, (moved - start) / 1000));
            };
            request.onload = () => request.status < 300 ? resolve(request)
                : reject(new Failure(request.status, request.responseText));
            request.onerror = request.onabort = () => reject(new Failure(0, "The connection broke."));
            request.onloadend = () => clearInterval(watch);
            request.send(body);
        });
    }

    progress(sent, speed) {
        const all = this.entry.size, s = (all - sent) / speed;
        const left = s < 90 ? `${Math.ceil(s)} s` : s < 5400 ? `${Math.ceil(s / 60)} min` : `${Math.ceil(s / 3600)} h`;
        this.sent = this.bar.value = sent;
        this.show("running", sent >= all ? `${size(all)} sent, being checked and stored…`
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
    keep(keyOf(entry), undefined);      // the server drops it by itself when it is old enough
    if (entry.id) call("DELETE", `models/${pathOf(...entry.names)}/upload?id=${entry.id}`).catch(() => {});
}

function showTotal() {
    const all = uploads.length - count("cancelled"), failed = count("failed");
    $("transfers").hidden = !$("rows").childElementCount;
    $("transfers-title").textContent = !all ? "Uploads" : `${count("done")} of ${counted(all, "file")} uploaded`
        + (failed ? `, ${failed} failed` : "");
    $("transfers-end").textContent = count(...ACTIVE) ? "Cancel all" : "Clear";
}

async function begin(entry, file) {
    if (entry) uploads.push(new Upload(entry, file));
    if (count("running", "broken") >= AT_ONCE || !count("waiting")) return;
    await uploads.find(({state}) => state === "waiting").run();
    for (const row of [...$("rows").querySelectorAll(".done")].slice(SHOWN)) row.remove();
    if (!count(...ACTIVE)) page.done(say($("transfers-title").textContent));
    begin();
}

/** Opens the dialog for an upload to a place, with [path, file] pairs. */
export function choose(place, files = []) {
    const single = field("Name", "model_name"), list = el("ul", {className: "files", tabIndex: 0}), total = el("p", {});
    const parts = ["Project", "Application", "Version"].map((label, i) =>
        field(label, FIELDS[i], {required: true, value: place[i] ?? "", ...RULE}));
    const pick = (text, properties) => {
        const input = el("input", {type: "file", hidden: true, ...properties});
        input.onchange = () => take([...input.files].map(file => [file.webkitRelativePath || file.name, file]));
        return [input, button(text, () => input.click()), " "];
    };
    let chosen = [];
    /** Shows what was chosen. A folder that all of it is in gives its name to the version; hidden files stay out. */
    take = pairs => {
        const fit = name => name.replace(/[^\w.+-]/g, "_").replace(/^[.+-]/, "_").slice(0, 128);
        const top = pairs[0]?.[0].split("/")[0], isFolder = pairs.every(([path]) => path.startsWith(`${top}/`));
        if (top && isFolder) parts[2].control.value ||= fit(top);
        const rows = pairs.toSorted(([a], [b]) => a < b ? -1 : 1).map(([whole, file]) => {
            const path = isFolder ? whole.slice(top.length + 1) : whole;
            return /(^|\/)\./.test(path) ? {path, name: "left out, because it is hidden"}
                : {path, file, name: path.split("/").map(fit).join("/")};
        });
        chosen = rows.filter(({file}) => file);
        single.hidden = chosen.length !== 1;
        single.control.value = chosen[0]?.name ?? "";
        total.textContent = rows.length
            ? `${counted(chosen.length, "file")}, ${size(chosen.reduce((sum, {file}) => sum + file.size, 0))}`
            : "Nothing is chosen yet. A folder becomes a version: its files keep their paths.";
        list.replaceChildren(...rows.slice(0, SHOWN).map(({path, name, file}) => el("li", {}, el("span", {},
            path === name ? path : `${path} → ${name}`), file && el("span", {}, size(file.size)))));
        list.hidden = !rows.length;
    };
    const zone = el("div", {className: "zone"}, el("p", {}, "Drop files or a folder anywhere on the page, or"),
        pick("Choose files", {id: "files", multiple: true}),
        pick("Choose a folder", {id: "folder", webkitdirectory: true}));
    ask("Upload", "Upload", [el("div", {className: "fields"}, parts), zone, total, list, single,
        el("div", {className: "fields"}, field("Description", "description"), field("Framework", "framework")),
        field("Replace models that exist", "replace", {type: "checkbox"})], form => {
        if (chosen.length === 1) chosen[0].name = single.control.value;
        const names = new Set(chosen.map(({name}) => name)), place = parts.map(part => part.control.value);
        if (!chosen.length) throw new Failure(-1, "Choose a file or a folder first.");
        if (names.size < chosen.length) throw new Failure(-1, "Two files would get one name: rename one.");
        const given = ["description", "framework"].map(name => [name, form[name].value]).filter(([, text]) => text);
        const common = {fields: Object.fromEntries(given), replace: form.replace.checked};
        for (const {name, file} of chosen)
            begin({...common, names: [...place, name], size: file.size, modified: file.lastModified}, file);
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
        if (file.size === entry.size && file.lastModified === entry.modified) begin(entry, file);
        else text.textContent = "This is another file, or it has changed since.";
    }});
    const drop = () => [row.remove(), discard(entry), showTotal()];
    const row = el("li", {id: `unfinished ${keyOf(entry)}`}, el("p", {className: "name"}, entry.names.join("/")), text,
        input, el("div", {className: "actions"}, button("Choose the file to continue", () => input.click(), "small"),
            button("Discard", drop, "plain small")));
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
        else if (!$("dialog").open) choose(page.place(), files);
    });
    addEventListener("beforeunload", event => { if (count("running", "broken")) event.preventDefault(); });
    $("transfers-end").onclick = () => {
        const active = uploads.filter(({state}) => ACTIVE.includes(state));
        for (const upload of active) upload.cancel();
        if (!active.length) for (const upload of uploads.splice(0)) upload.row.remove();
        showTotal();
    };
    Object.values(unfinished()).forEach(showUnfinished);
}
