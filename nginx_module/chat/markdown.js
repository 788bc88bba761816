
/*
 * Markdown of answers as elements: code blocks, headings, lists, paragraphs, `code`, **bold** and *italic*.  Text becomes text nodes
 * and nothing else: there is no way from an answer to markup, an address or a request.
 */

function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className)
        made.className = className;
    made.append(...children);
    return made;
}

function inline(text) {
    const nodes = [];
    const pattern = /(`+)([^`](?:.*?[^`])?)\1(?!`)|\*\*(\S(?:.*?\S)?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/gs;
    let end = 0;
    for (const match of text.matchAll(pattern)) {
        nodes.push(text.slice(end, match.index));
        if (match[2] !== undefined)
            nodes.push(element("code", "", match[2]));
        else if (match[3] !== undefined)
            nodes.push(element("strong", "", match[3]));
        else
            nodes.push(element("em", "", match[4]));
        end = match.index + match[0].length;
    }
    nodes.push(text.slice(end));
    return nodes;
}

function codeBlock(name, text) {
    const copy = element("button", "", word("copy"));
    copy.type = "button";
    copy.addEventListener("click", async () => {
        try {
            await navigator.clipboard.writeText(text);
            copy.textContent = word("copied");
        } catch (error) { /* no permission, or no secure context */
            getSelection().selectAllChildren(copy.closest(".code").querySelector("code"));
        }
    });
    const pre = element("pre", "", element("code", "", text));
    pre.tabIndex = 0;
    return element("div", "code", element("div", "", element("span", "", name || "text"), copy), pre);
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([^`]*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

function takeFence(lines, at, fence) {
    const inside = [];
    let i = at + 1;
    const closes = line => line.trim().startsWith(fence[1]) && !line.trim().replaceAll(fence[1][0], "");
    while (i < lines.length && !closes(lines[i]))
        inside.push(lines[i++]);
    return [codeBlock(fence[2].trim(), inside.join("\n")), i + 1];
}

function takeList(lines, at, item) {
    const ordered = item[1] !== undefined;
    const list = element(ordered ? "ol" : "ul");
    let i = at;
    if (ordered)
        list.start = Number(item[1]);
    for (let match; i < lines.length && (match = lines[i].match(ITEM)) && (match[1] !== undefined) === ordered; i++)
        list.append(element("li", "", ...inline(match[2])));
    return [list, i];
}

function markdown(text) {
    const nodes = [], lines = text.split("\n");
    let i = 0, node, match;
    while (i < lines.length) {
        if ((match = lines[i].match(FENCE))) {
            [node, i] = takeFence(lines, i, match);
        } else if ((match = lines[i].match(HEADING))) {
            node = element(match[1].length < 3 ? "h3" : "h4", "", ...inline(match[2]));
            i++;
        } else if ((match = lines[i].match(ITEM))) {
            [node, i] = takeList(lines, i, match);
        } else if (!lines[i].trim()) {
            i++;
            continue;
        } else {
            const paragraph = [];
            while (i < lines.length && lines[i].trim() && ![FENCE, HEADING, ITEM].some(p => p.test(lines[i])))
                paragraph.push(lines[i++]);
            node = element("p", "", ...inline(paragraph.join("\n")));
        }
        nodes.push(node);
    }
    return nodes;
}
