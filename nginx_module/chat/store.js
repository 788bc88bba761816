
/*
 * What the browser keeps, in localStorage, under names that begin with the API's path: one entry a chat, so that two windows with
 * different chats do not undo each other's work; the settings; the API key.
 *
 * A chat is {id, changed, messages: [{role, content, facts?, error?}]}.
 */

const API = new URL(document.documentElement.dataset.api.replace(/\/*$/, "/"), location.href);
const PREFIX = `mixtral ${API.pathname} `;

function keep(name, value) {
    try {
        if (value === null)
            localStorage.removeItem(PREFIX + name);
        else
            localStorage.setItem(PREFIX + name, JSON.stringify(value));
    } catch (error) { /* no room, or not allowed */
        notice(word("notKept") + error.message);
    }
}

function kept(name, otherwise) {
    try {
        return JSON.parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
    } catch (error) { /* not allowed, or somebody else's */
        return otherwise;
    }
}

/* The newest first */
function keptChats() {
    const chats = [];
    try {
        for (const name of Object.keys(localStorage)) {
            const chat = name.startsWith(PREFIX + "chat ") && kept(name.slice(PREFIX.length), null);
            if (chat && Array.isArray(chat.messages))
                chats.push(chat);
        }
    } catch (error) {
        notice(word("notKept") + error.message);
    }
    return chats.sort((a, b) => b.changed - a.changed);
}

function keepChat(chat) {
    chat.changed = Date.now();
    keep("chat " + chat.id, chat);
}

function dropChat(chat) {
    keep("chat " + chat.id, null);
}

function newChat() {
    return {id: crypto.getRandomValues(new Uint32Array(3)).join("-"), changed: Date.now(), messages: []};
}

function titleOf(chat) {
    const first = chat.messages.find(message => message.role === "user");
    return first ? first.content.trim().replace(/\s+/g, " ").slice(0, 60) : word("untitled");
}
