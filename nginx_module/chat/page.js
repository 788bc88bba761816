
/*
 * The page: the chat that is shown, the answer that is being written (one at a time, of any chat), and what buttons and keys do.
 */

const $ = id => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const SAVE_MS = 1000; /* between two savings of an answer that is being written */

let chat = newChat();
let running = null; /* {chat, message, abort} */
let settings = kept("settings", {});

function notice(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
}

/* ---- Showing ---- */

function button(text, className, act) {
    const made = element("button", className, text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
}

function facts(message, isLast) {
    const line = element("p", "facts");
    const {finish, usage, timings, stopped} = message.facts ?? {};
    if (stopped)
        line.append(element("span", "", word("stopped")));
    if (finish === "length")
        line.append(element("span", "", word("cut")));
    if (usage)
        line.append(element("span", "", word("tokens", usage.completion_tokens)));
    if (timings?.predicted_per_second)
        line.append(element("span", "speed", word("speed", timings.predicted_per_second.toFixed(1))));
    if (usage)
        line.append(element("span", "", word("cached", usage.prompt_tokens_details?.cached_tokens ?? 0, usage.prompt_tokens)));
    if (isLast)
        line.append(button(word("again"), "again", again));
    return line;
}

function turn(message, isLast) {
    const body = element("div", "body");
    if (message.role === "user")
        body.textContent = message.content;
    else
        body.append(...markdown(message.content));
    const shown = element("article", "turn " + message.role, element("h2", "", word(message.role === "user" ? "you" : "assistant")), body);
    if (message.facts)
        shown.append(facts(message, isLast));
    if (message.error)
        shown.append(element("p", "error", message.error, isLast ? button(word("retry"), "retry", again) : ""));
    if (running && running.message === message)
        shown.classList.add("busy");
    return shown;
}

function follows() { /* whether the end of the conversation is in view */
    const log = $("log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function show() {
    const last = chat.messages.length - 1;
    $("log").replaceChildren(...chat.messages.map((message, i) => turn(message, i === last && !running)));
    if (last < 0)
        $("log").append(element("p", "empty", word("empty")));
    $("log").scrollTop = $("log").scrollHeight;
    showButtons();
}

function showButtons() {
    $("send").hidden = running !== null;
    $("stop").hidden = running === null;
}

/* Only the last turn: what comes with each piece must not cost what the whole conversation does */
function showLast() {
    const stays = follows();
    if (chat !== running?.chat)
        return;
    $("log").lastElementChild.replaceWith(turn(running.message, false));
    if (stays)
        $("log").scrollTop = $("log").scrollHeight;
}

function showChats() {
    $("chats").replaceChildren(...keptChats().map(other => {
        const open = button(titleOf(other), "open", () => openChat(other));
        const remove = button("✕", "remove", () => removeChat(other));
        remove.setAttribute("aria-label", `${word("remove")}: ${titleOf(other)}`);
        if (other.id === chat.id)
            open.setAttribute("aria-current", "true");
        return element("li", "", open, remove);
    }));
}

function showAll() {
    document.title = $("title").textContent = `mixtral · ${document.documentElement.dataset.engine}`;
    speak(language);
    show();
    showChats();
}

/* ---- Chats ---- */

function openChat(other) {
    chat = running?.chat.id === other.id ? running.chat : other;
    keep("open", chat.id);
    notice("");
    show();
    showChats();
    showSide(false);
    $("input").focus();
}

function removeChat(other) {
    if (running?.chat.id === other.id)
        running.abort.abort();
    dropChat(other);
    if (chat.id === other.id)
        openChat(keptChats()[0] ?? newChat());
    else
        showChats();
}

/* ---- Answers ---- */

function requestBody() {
    const body = {messages: []};
    if (settings.system?.trim())
        body.messages.push({role: "system", content: settings.system});
    for (const {role, content} of chat.messages) {
        const last = body.messages.at(-1);
        if (!content)
            continue; /* an answer that failed; templates want users and answers by turns */
        if (last?.role === role)
            last.content += "\n\n" + content;
        else
            body.messages.push({role, content});
    }
    for (const name of NUMBERS)
        if (typeof settings[name] === "number")
            body[name] = settings[name];
    if ($("model").value)
        body.model = $("model").value;
    return body;
}

function piece(text) {
    const {message} = running;
    message.content += text;
    if (!running.drawing) {
        running.drawing = true;
        requestAnimationFrame(() => {
            if (running) {
                running.drawing = false;
                showLast();
            }
        });
    }
    if (Date.now() - running.chat.changed > SAVE_MS)
        keepChat(running.chat);
}

async function answer() {
    const body = requestBody(), message = {role: "assistant", content: ""};
    running = {chat, message, abort: new AbortController(), drawing: false};
    chat.messages.push(message);
    keepChat(chat);
    keep("open", chat.id);
    show();
    showChats();
    $("announce").textContent = word("answering");
    let needsKey = "";
    try {
        message.facts = await complete(body, running.abort.signal, piece);
    } catch (error) {
        if (error.name === "AbortError")
            message.facts = {stopped: true};
        else
            message.error = error.message;
        if (error.status === 401)
            needsKey = error.message;
    }
    const ended = running;
    running = null;
    $("announce").textContent = message.error ?? `${word("assistant")}: ${message.content}`;
    if (kept("chat " + ended.chat.id, null)) /* it may have been deleted */
        keepChat(ended.chat);
    if (ended.chat === chat)
        show();
    showButtons();
    showChats();
    if (needsKey)
        askForKey(needsKey, again);
}

function again() {
    if (running)
        return;
    if (chat.messages.at(-1)?.role === "assistant")
        chat.messages.pop();
    $("input").focus();
    answer();
}

function send() {
    const content = $("input").value.trim();
    if (!content || running)
        return;
    chat.messages.push({role: "user", content});
    $("input").value = "";
    grow();
    notice("");
    answer();
}

function stop() {
    running?.abort.abort();
    $("input").focus();
}

/* ---- The key, the models, the settings ---- */

let afterKey = null;

function askForKey(why, then) {
    afterKey = then;
    $("key-why").textContent = why;
    $("key").value = "";
    if (!$("key-dialog").open)
        $("key-dialog").showModal();
}

async function fillModels() {
    let models;
    try {
        models = await listModels();
    } catch (error) {
        if (error.status === 401)
            askForKey(error.message, fillModels);
        else
            notice(word("noModels") + error.message);
        return;
    }
    notice("");
    $("model").replaceChildren(...models.map(name => new Option(name, name)));
    if (models.includes(settings.model))
        $("model").value = settings.model;
}

function openSettings() {
    $("system").value = settings.system ?? "";
    for (const name of NUMBERS)
        $(name).value = settings[name] ?? "";
    $("settings-dialog").showModal();
}

function takeSettings() {
    settings.system = $("system").value;
    for (const name of NUMBERS) {
        const number = $(name).valueAsNumber;
        settings[name] = Number.isNaN(number) ? null : number;
    }
    keep("settings", settings);
}

/* ---- Buttons and keys ---- */

function grow() {
    const input = $("input");
    input.style.height = "auto";
    input.style.height = input.scrollHeight + 2 + "px";
}

function showSide(shown) {
    $("side").classList.toggle("shown", shown);
    $("menu").setAttribute("aria-expanded", String(shown));
}

function listen() {
    $("form").addEventListener("submit", event => { event.preventDefault(); send(); });
    $("stop").addEventListener("click", stop);
    $("input").addEventListener("input", grow);
    $("input").addEventListener("keydown", event => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            send();
        }
    });
    document.addEventListener("keydown", event => {
        if (event.key !== "Escape" || document.querySelector("dialog[open]"))
            return;
        if ($("side").classList.contains("shown")) {
            showSide(false);
            $("menu").focus();
        } else if (running) {
            stop();
        }
    });
    $("menu").addEventListener("click", () => {
        showSide(!$("side").classList.contains("shown"));
        if ($("side").classList.contains("shown"))
            $("new").focus();
    });
    $("new").addEventListener("click", () => openChat(newChat()));
    $("settings").addEventListener("click", openSettings);
    $("settings-dialog").addEventListener("close", takeSettings);
    $("forget").addEventListener("click", () => keep("key", null));
    $("key-cancel").addEventListener("click", () => $("key-dialog").close(""));
    $("key-dialog").addEventListener("close", () => {
        if ($("key-dialog").returnValue === "ok") {
            keep("key", $("key").value.trim());
            afterKey();
            if (!$("model").options.length && afterKey !== fillModels)
                fillModels();
        }
        $("key-dialog").returnValue = "";
        $("input").focus();
    });
    $("model").addEventListener("change", () => { settings.model = $("model").value; keep("settings", settings); });
    $("language").addEventListener("click", () => {
        language = language === "en" ? "zh" : "en";
        keep("language", language);
        showAll();
    });
}

language = kept("language", navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
const openId = kept("open", null);
chat = keptChats().find(other => other.id === openId) ?? chat;
listen();
showAll();
fillModels();
$("input").focus();
