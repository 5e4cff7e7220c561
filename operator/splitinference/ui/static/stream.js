// The connection to the server: a token that stays in this tab, and events read from a stream. A lost connection is made again.

const KEY = "splitinference-token";
const SILENCE_MS = 35000;

/** The token of the URL's fragment, which is then taken out of the address bar, or the one that this tab has. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) || "";
}

export const keepToken = (token) => sessionStorage.setItem(KEY, token);
export const dropToken = () => sessionStorage.removeItem(KEY);

export function headers(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

/** An answer as JSON. Throws an Error with the server's words; its `status` is that of HTTP. */
export async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers), credentials: "omit", redirect: "error" });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function refusal(response) {
  let words = "";
  try {
    words = (await response.json()).error;
  } catch {
    words = "";
  }
  const error = new Error(words || `The server answered ${response.status}.`);
  error.status = response.status;
  return error;
}

/** Call `got(event, data)` for each event until the token is refused; `lost(error)` each time that there is no connection. */
export async function follow(got, lost) {
  let pause = 500;
  for (;;) {
    const stop = new AbortController();
    try {
      const response = await fetch("/api/events", { headers: headers(), credentials: "omit", redirect: "error", signal: stop.signal });
      if (!response.ok) throw await refusal(response);
      pause = 500;
      await events(response.body.getReader(), got, stop);
      lost(new Error("The server ended the connection."));
    } catch (error) {
      lost(error);
      if (error.status === 401 || error.status === 403) return;
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(pause * 2, 10000);
  }
}

async function events(reader, got, stop) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const timer = setTimeout(() => stop.abort(new Error("The server is silent.")), SILENCE_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const found = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 2);
      }
      got(found.event, JSON.parse(found.data || "{}"));
    }
  }
}
