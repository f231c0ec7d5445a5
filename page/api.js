// What the other scripts share: the address, requests to the API, the token, elements and the dialog of the page.
export const base = new URL("../", import.meta.url);    // the root of the server, below whatever path a proxy has it
export const FIELDS = ["project_id", "app_name", "version", "model_name"];
export const $ = id => document.getElementById(id);
export const pathOf = (...names) => names.flatMap(name => name.split("/")).map(encodeURIComponent).join("/");
export const number = value => Number.isInteger(value) ? value.toLocaleString("en") : String(value ?? "–");
export const counted = (many, what) => `${number(many)} ${what}${many === 1 ? "" : "s"}`;
export const say = text => { $("status").textContent = text; };     // to a screen reader
export const token = () => sessionStorage.getItem("token") ?? "";   // of this tab, until it is closed
let credentials = "omit";   // with credentials, the browser itself would ask for a password after a 401

/** The names in the address of the page: those of a list, and a fourth of a file. None of them needs escaping. */
export function place() {
    const path = location.pathname.slice(base.pathname.length).split("/").filter(Boolean).slice(1);
    const names = path[0] === "list" ? [] : path.map(decodeURIComponent), file = location.hash.slice(1);
    // a browser removes dots from an address, so requests would be about another model than the one that is shown
    return names.length === 3 && file && !/(^|\/)\.\.?(\/|$)/.test(file) ? [...names, file] : names;
}

/** What could not be done, in words. Its cause is the status of the answer, 0 if the server could not be reached. */
export class Failure extends Error {}

/** The answer to a request. Throws Failure. */
export async function call(method, path, options = {}) {
    const headers = {...token() && {Authorization: `Bearer ${token()}`}, ...options.headers};
    const answer = await fetch(new URL(path, base), {...options, method, credentials, headers})
        .catch(() => { throw new Failure("The server cannot be reached.", {cause: 0}); });
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => null);     // a proxy may answer with something else
    const text = told?.detail ?? told?.reason ?? `It answered ${answer.status}`;
    const unknown = "The server does not know this token: it was mistyped, or has been withdrawn.";
    throw new Failure({401: token() ? unknown : "This server requires a token for this.",
        403: `You are not allowed to do this: ${text}`}[answer.status] ?? text, {cause: answer.status});
}
export const jsonOf = answer => answer.json().catch(() => { throw new Failure("The answer broke off.", {cause: 0}); });
export const read = path => call("GET", path).then(jsonOf);

/** The health of the server. If a proxy that wants a cookie answers in its place, cookies are sent from now on. */
export const health = () => read("health").catch(error => {
    if (error.cause === 503) throw error;
    credentials = "same-origin";
    return read("health");
});

/** An element, like el("p.say", "text"). Its children are elements or text, and what others wrote is always text. */
export function el(kind, children, properties) {
    const [name, className = ""] = kind.split(".");
    const element = Object.assign(document.createElement(name), {className}, properties);
    element.append(...[children].flat(9).filter(Boolean));
    return element;
}
export const button = (text, onclick, look = ".plain") => el(`button${look}`, text, {onclick, type: "button"});

export function size(bytes) {
    const step = bytes < 1000 ? 0 : Math.min(5, Math.floor(Math.log10(bytes) / 3));
    return `${step ? (bytes / 1000 ** step).toFixed(1) : bytes} ${["B", "kB", "MB", "GB", "TB", "PB"][step]}`;
}

/** What is filled in in a form, as [name, text]. */
export const filledIn = form => Array.from(new FormData(form), ([name, text]) => [name, text.trim()])
    .filter(([, text]) => text);

/** Opens the dialog with the template of this id, returns its form. `submit` gets what was entered, by name. */
export function ask(id, values, submit) {
    const form = $("dialog").firstElementChild, {title, verb} = $(id).dataset;
    $("dialog").className = `card ${id}`;
    $("dialog-fields").replaceChildren($(id).content.cloneNode(true));
    $("dialog-title").textContent = title;
    Object.assign($("dialog-go"), {textContent: verb, disabled: false});
    $("problem").textContent = "";
    for (const [name, value] of Object.entries(values)) form[name].value = value;
    form.onsubmit = event => {
        event.preventDefault();
        submit(Object.fromEntries(new FormData(form)))
            .then(() => $("dialog").close(), error => { $("problem").textContent = error.message; });
    };
    $("dialog").showModal();
    return form;
}
