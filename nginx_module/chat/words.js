
/*
 * What the page says, in English and Chinese.  Elements name their words: data-word is their text, data-label their accessible name
 * and tooltip, data-placeholder their placeholder.
 */

const WORDS = {
    en: {
        skip: "Skip to the message", chats: "Chats", newChat: "New chat", settings: "Settings", conversation: "Conversation",
        message: "Message", hint: "Write a message", keys: "Enter sends, Shift+Enter begins a line, Escape stops an answer", send: "Send", stop: "Stop",
        model: "Model", otherLanguage: "中文", otherLanguageLabel: "切换到中文", you: "You", assistant: "Answer",
        system: "System prompt", temperature: "Temperature (0: the likeliest)", top_p: "top_p", top_k: "top_k (0: all)",
        max_tokens: "Longest answer, in tokens", seed: "Seed", emptyIsDefault: "What is empty is the server's default. Kept in this browser.",
        forget: "Forget the API key", close: "Close", cancel: "Cancel", continue: "Continue", keyTitle: "An API key is needed",
        key: "API key", keyKept: "It is kept in this browser and sent to this server only.", empty: "Ask something.",
        copy: "Copy", copied: "Copied", again: "Answer again", retry: "Try again", remove: "Delete", untitled: "New chat",
        answering: "The answer is being written.", stopped: "Stopped.", cut: "Cut off at the longest answer.",
        tokens: n => `${n} tokens`, speed: n => `${n} tokens/s`, cached: (n, all) => `prompt ${all} tokens, ${n} of them cached`,
        dead: "The server does not answer.", broken: "The connection broke off before the answer ended.",
        strange: status => `The server answered with status ${status}.`, notKept: "The browser does not let this page keep its chats: ",
        noModels: "The models could not be listed: ",
    },
    zh: {
        skip: "跳到输入框", chats: "对话列表", newChat: "新对话", settings: "设置", conversation: "对话",
        message: "消息", hint: "输入消息", keys: "Enter 发送，Shift+Enter 换行，Esc 停止回答", send: "发送", stop: "停止",
        model: "模型", otherLanguage: "English", otherLanguageLabel: "Switch to English", you: "你", assistant: "回答",
        system: "系统提示", temperature: "温度（0：最可能的词）", top_p: "top_p", top_k: "top_k（0：全部）",
        max_tokens: "回答的最大词元数", seed: "随机种子", emptyIsDefault: "留空即用服务器的默认值。保存在此浏览器中。",
        forget: "忘记 API 密钥", close: "关闭", cancel: "取消", continue: "继续", keyTitle: "需要 API 密钥",
        key: "API 密钥", keyKept: "密钥保存在此浏览器中，只发送给本服务器。", empty: "请提问。",
        copy: "复制", copied: "已复制", again: "重新回答", retry: "重试", remove: "删除", untitled: "新对话",
        answering: "正在回答。", stopped: "已停止。", cut: "达到最大长度，回答被截断。",
        tokens: n => `${n} 个词元`, speed: n => `每秒 ${n} 个词元`, cached: (n, all) => `提示 ${all} 个词元，其中 ${n} 个来自缓存`,
        dead: "服务器没有响应。", broken: "回答结束前连接中断。",
        strange: status => `服务器返回状态 ${status}。`, notKept: "浏览器不允许此页面保存对话：",
        noModels: "无法列出模型：",
    },
};

let language = "en";

function word(name, ...values) {
    const text = WORDS[language][name];
    return typeof text === "function" ? text(...values) : text;
}

function speak(chosen) {
    language = chosen;
    document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
    for (const element of document.querySelectorAll("[data-word]"))
        element.textContent = word(element.dataset.word);
    for (const element of document.querySelectorAll("[data-label]")) {
        element.setAttribute("aria-label", word(element.dataset.label));
        element.title = word(element.dataset.label);
    }
    for (const element of document.querySelectorAll("[data-placeholder]"))
        element.placeholder = word(element.dataset.placeholder);
}
