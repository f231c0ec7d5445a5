// What the other scripts share: requests to the API, the token, elements and the dialog of the page.
export const base = new URL("../", import.meta.url);    // the root of the server, below whatever path a proxy has it
export const FIELDS = ["project_id", "app_name", "version", "model_name"];
export const $ = id => document.getElementById(id);
export const pathOf = (...names) => names.flatMap(name => name.split("/")).map(encodeURIComponent).join("/");
export const number = value => Number.isInteger(value) ? value.toLocaleString("en") : String(value ?? "–");
export const counted = (many, what) => `${number(many)} ${what}${many === 1 ? "" : "s"}`;
export const say = text => { $("status").textContent = text; };     // to a screen reader
export const token = () => sessionStorage.getItem("token") ?? "";   // of this tab, until it is closed
export const authorization = () => token() && {Authorization: `Bearer ${token()}`};
let credentials = "omit";   // for a 401 to a request with credentials the browser asks for a password by itself

export class Failure extends Error {
    constructor(status, text = "") {
        let told = {detail: status > 0 ? `It answered ${status}.` : text};
        try {
            told = JSON.parse(text);
        } catch {}      // words of ours, or the page of a proxy
        const unknown = "The server does not know this token: it was mistyped, or has been withdrawn.";
        super({401: token() ? unknown : "This server wants a token for this.",
            403: `You are not allowed to do this: ${told.detail}.`}[status] ?? told.detail ?? told.reason);
        this.status = status;
    }
}

/** The answer to a request; throws Failure, with status 0 if the server could not be reached. */
export async function call(method, path, options = {}) {
    const headers = {...authorization(), ...options.headers};
    const answer = await fetch(new URL(path, base), {...options, method, credentials, headers})
        .catch(() => { throw new Failure(0, "The server cannot be reached."); });
    if (!answer.ok) throw new Failure(answer.status, await answer.text().catch(() => ""));
    return answer;
}
export const read = path => call("GET", path).then(answer => answer.json());

/** The health of the server. If a proxy that wants a cookie answers in its place, cookies are sent from now on. */
export const health = () => read("health").catch(error => {
    if (error.status === 503) throw error;
    credentials = "same-origin";
    return read("health");
});

/** An element; its children are elements or text, and what others wrote is never anything but text. */
export function el(name, properties, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties))
        if (key in element) element[key] = value;
        else element.setAttribute(key, value);
    element.append(...children.flat(9).filter(Boolean));
    return element;
}
export const button = (text, onclick, className = "plain") => el("button", {className, onclick, type: "button"}, text);
export const field = (label, name, properties = {}, kind = "input") =>
    el("label", {}, label, " ", el(kind, {name, spellcheck: false, ...properties}));

export function size(bytes) {
    const step = bytes < 1000 ? 0 : Math.min(5, Math.floor(Math.log10(bytes) / 3));
    return `${step ? (bytes / 1000 ** step).toFixed(1) : bytes} ${["B", "kB", "MB", "GB", "TB", "PB"][step]}`;
}

/** Opens the dialog; `submit` gets its form, and a Failure of it is shown. Otherwise the dialog closes. */
export function ask(title, verb, fields, submit, className = "") {
    $("dialog-title").textContent = title;
    $("dialog-fields").replaceChildren(...fields);
    Object.assign($("dialog-go"), {textContent: verb, className, disabled: false});
    $("problem").textContent = "";
    $("dialog").firstElementChild.onsubmit = async event => {
        event.preventDefault();
        try {
            await submit(event.target);
            $("dialog").close();
        } catch (error) {
            if (!(error instanceof Failure)) throw error;
            $("problem").textContent = error.message;
        }
    };
    $("dialog").showModal();
}
